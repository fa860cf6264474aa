"""Pace: how many devices train at once, which of them, and for how long. Pure.

Nobody is asked one by one: a fleet that is rarely online cannot be. The task says in `[pace]` what
it is after, the server publishes a `PaceHint` of a few bytes, and every device draws for itself
whether it trains on a model. A hint binds nobody: who sends all the same is folded.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from schemas.strategy import NonNegative

SHARE_LEAST: Final = 1e-6
"""No smaller share is ever asked for."""

SCORE: Final = "score"
"""The metric of an update that tells how its device was scored."""

METERED: Final = 10.0
"""The price of a byte on a metered link, where one on any other costs 1."""

SLOW: Final = 2.0
"""Oort's alpha: who takes twice the time that is wished for counts a quarter."""

Select: TypeAlias = Literal["any", "battery", "link", "utility", "fair"]


class PaceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[pace]`: how many devices train at once, which, and for how long.

    Attributes:
        concurrency: so many devices train at once, about: the server turns the fleet down or up by
            the staleness it sees; 0: everybody trains on every model.
        lease_s: a device that was not drawn draws again after so long if nothing is published,
            with twice the chance: longer than a round takes, as a rule.
        select: who is drawn rather than others: `any` nobody, `battery` those with charge, `link`
            those whose bytes are cheap, `utility` those whose examples are learnt badly and who are
            quick (Oort), `fair` those who have contributed least.
        explore: this share of the draws is made without looking at `select`.
        seconds: local training is to take so long on every device: each makes as many steps as it
            can in that time (FedCompass); 0: as [train] says.
        steps_min: but at least so many,
        steps_max: and at most so many; 0: no bound.
    """

    concurrency: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=1e7)] = 600.0
    select: Select = "any"
    explore: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    seconds: NonNegative = 0.0
    steps_min: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 1
    steps_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0


class PaceHint(msgspec.Struct, frozen=True):
    """`pace`, retained JSON: which share of the fleet is to train on a model.

    Attributes:
        share: of the devices that hear it.
        score: the mean score of those that have taken part.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    score: Annotated[float, msgspec.Meta(gt=0, le=1e30)] = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a device knows of itself; None where it does not.

    Attributes:
        charge: of its battery, 0 to 1.
        unmetered: whether its link costs nothing by the byte.
        left: the share of its uplink's budget that is left, 0 to 1.
        examples: of its newest round.
        loss: the mean over them.
        seconds: that the round took.
        folded: its updates so far.
    """

    charge: float | None = None
    unmetered: bool | None = None
    left: float | None = None
    examples: int | None = None
    loss: float | None = None
    seconds: float | None = None
    folded: int = 0


def score(options: PaceOptions, facts: Facts) -> float | None:
    """How much a device is wanted, above 0; None: it cannot tell, and counts as the mean one.

    `utility` is Oort's statistical utility times its system utility (Lai et al., "Oort: Efficient
    Federated Learning via Guided Participant Selection", OSDI 2021, equation 1):

        |B| sqrt(1 / |B| sum of loss^2) * (T / t)^alpha when t > T, with T = `seconds`

    The device knows the mean loss alone: it stands in the root mean square's place, which it never
    exceeds. `fair` is 1 / (1 + own updates).
    """
    found: float | None
    match options.select:
        case "any":
            return 1.0
        case "battery":
            found = facts.charge
        case "link":
            price = None if facts.unmetered is None else 1.0 if facts.unmetered else METERED
            found = facts.left if price is None else 1.0 / price
            if price is not None and facts.left is not None:
                found = facts.left / price
        case "utility":
            found = _utility(options, facts)
        case "fair":
            found = 1.0 / (1.0 + facts.folded)
    return None if found is None else min(max(found, 1e-9), 1e9)


def _utility(options: PaceOptions, facts: Facts) -> float | None:
    if facts.examples is None or facts.loss is None:
        return None
    wished, took = options.seconds, facts.seconds
    slow = wished and took is not None and took > wished
    quick = (wished / took) ** SLOW if slow and took else 1.0
    return facts.examples * abs(facts.loss) * quick


def takes_part(  # noqa: PLR0917 - what is hashed, in its order
    device: str,
    epoch: int,
    version: int,
    attempt: int,
    hint: PaceHint,
    score: float | None,
    explore: float,
) -> bool:
    """Whether a device trains on a version. The same arguments always give the same answer.

    It is drawn from SHA-256 with probability min(1, p score / mean score), and with probability
    `explore` with p alone. p is the share, and doubles with every lease that passed without news:
    a share that was too small for this fleet never silences it.

    Args:
        device: its name.
        epoch: of the task.
        version: the base.
        attempt: leases that have passed since this device had the base, from 0.
        hint: what the server says.
        score: the device's; None: as the mean.
        explore: the share of draws that are made without the score.
    """
    drawn = sha256(f"pace {device} {epoch} {version} {attempt}".encode()).digest()
    explores = int.from_bytes(drawn[:7], "big") < explore * 2.0**56
    wanted = 1.0 if explores or score is None else score / hint.score
    share = hint.share * 2.0 ** min(attempt, 64)
    return int.from_bytes(drawn[7:14], "big") < min(1.0, share * wanted) * 2.0**56
