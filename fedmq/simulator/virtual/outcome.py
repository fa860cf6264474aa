"""What a simulated run came to: values that are printed, compared and drawn. Pure."""

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """How far a run was at one moment.

    Attributes:
        uploads: updates that devices have sent, those that were lost or refused included.
        version: of the model.
        virtual_s: seconds since the run began.
        bytes_up: whole messages, that arrived or not.
        bytes_down: manifests and models that devices fetched.
        joules: of training and radio, of all devices.
        figures: what the learner found of the published model, `accuracy` and `loss` as a rule.
    """

    uploads: int
    version: int
    virtual_s: float
    bytes_up: int
    bytes_down: int
    joules: float
    figures: dict[str, float]


class Participation(msgspec.Struct, frozen=True):
    """Who made the model.

    Attributes:
        devices: that have contributed at least once.
        most: share of the weight that the device with most of it has.
        top_tenth: share of the weight of the tenth of the devices (that contributed) with most.
        gini: of the weights of the devices that contributed, 0 even to 1 one alone.
        shares: of the weight, a device, ascending, to draw it; of more than 1,000 devices the means
            of 1,000 bins of equally many.
    """

    devices: int
    most: float
    top_tenth: float
    gini: float
    shares: list[float]


class Outcome(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        name: of the fleet.
        devices: how many there are.
        seed: of everything that was drawn.
        samples: in order, each of the model after a fold; the first before anything was sent, the
            last at the end.
        target: the figure and its value that the run was after; empty: none.
        reached: where it was met, by the mean of three versions: the one in their middle; None:
            never.
        version: of the model at the end.
        digest: of the model at the end, 16 hexadecimal digits: of the published version's.
        staleness: how many folded updates had which staleness.
        staleness_mean: of what was folded.
        outcomes: updates by what became of them: `folded`, `lost`, and the reasons of refusals.
        participation: see Participation.
        dead: devices whose battery is empty.
        trained: rounds of local training that were really computed.
        events: that were worked off.
        wall_s: how long that took, in real seconds; 0 in what must be the same every time.
        personal: figures over a sample of devices at the end, when the task asks for it.
    """

    name: str
    devices: int
    seed: int
    samples: list[Sample]
    target: dict[str, float]
    reached: Sample | None
    version: int
    digest: str
    staleness: dict[int, int]
    staleness_mean: float
    outcomes: dict[str, int]
    participation: Participation
    dead: int
    trained: int
    events: int
    wall_s: float
    personal: dict[str, float] = {}


def final(outcome: Outcome, figure: str) -> float:
    """The mean of a figure over the last five samples; NaN when it was never measured.

    The first sample, of the model before any training, counts only when it is alone.
    """
    last = outcome.samples[1:][-5:] or outcome.samples
    found = [s.figures[figure] for s in last if figure in s.figures]
    return sum(found) / len(found) if found else float("nan")


def with_wall(outcome: Outcome, seconds: float) -> Outcome:
    """The same run, and how long it took."""
    return msgspec.structs.replace(outcome, wall_s=seconds)
