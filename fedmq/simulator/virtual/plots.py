"""The pictures of simulated runs: what a figure cost, how stale updates were, who made the model.

matplotlib is of the extra `demo` and imported only here, when a picture is wanted. Refuses without
it.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

from fedmq.simulator.virtual.outcome import Outcome, Sample
from fedmq.simulator.virtual.report import figure_of
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS: Final[Sequence[tuple[str, Callable[[Sample], float]]]] = (
    ("uploads", lambda s: s.uploads),
    ("MB up and down, whole messages", lambda s: (s.bytes_up + s.bytes_down) / 1e6),
    ("virtual hours", lambda s: s.virtual_s / 3600),
    ("joules, all devices", lambda s: s.joules),
)
"""What a figure is drawn over."""

PICTURES: Final = ("cost.png", "staleness.png", "participation.png")


def refuse_without_matplotlib() -> None:
    """Raises ConfigError where pictures cannot be drawn."""
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - demo's extra
    except ImportError as exc:
        remedy = "needs matplotlib: pip install 'fedmq[demo]', or leave --plots out"
        raise ConfigError("plots", remedy) from exc


def refuse_folder(folder: Path) -> None:
    """Make the folder; raises ConfigError where no picture can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        remedy = f"{folder} cannot be written to ({exc.strerror}): name another folder"
        raise ConfigError("plots", remedy) from exc
    for name in PICTURES:
        if (folder / name).is_dir():
            raise ConfigError("plots", f"{folder / name} is a folder: name another one")


def draw(folder: Path, outcomes: Sequence[Outcome]) -> list[Path]:
    """Draw all PICTURES. Raises ConfigError, OSError."""
    refuse_without_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    parts = ([_cost(outcomes, n) for n in range(len(COSTS))], [_staleness(outcomes)])
    pages = zip(PICTURES, (*parts, [_lorenz(outcomes)]), strict=True)
    return [_page(folder / name, part) for name, part in pages]


def lorenz(shares: Sequence[float]) -> tuple[list[float], list[float]]:
    """Lorenz' curve of ascending shares: (share of devices, share of the weight), from 0 to 1.

    Empty or all zero: the diagonal.
    """
    whole = sum(shares)
    if not whole:
        return [0.0, 1.0], [0.0, 1.0]
    devices = [n / len(shares) for n in range(len(shares) + 1)]
    return devices, [part / whole for part in accumulate(shares, initial=0.0)]


def _page(path: Path, parts: Sequence[Callable[["Axes"], None]]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - demo's extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - demo's extra

    side = 2 if len(parts) > 1 else 1
    figure = Figure(figsize=(5.5 * side, 3.8 * side), layout="constrained")
    FigureCanvasAgg(figure)
    for number, part in enumerate(parts):
        axes = figure.add_subplot(side, side, number + 1)
        part(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _cost(outcomes: Sequence[Outcome], number: int) -> Callable[["Axes"], None]:
    label, spent = COSTS[number]
    figure = figure_of(outcomes[0])

    def part(axes: "Axes") -> None:
        for outcome in outcomes:
            found = [s for s in outcome.samples if figure in s.figures]
            axes.plot(
                [spent(s) for s in found], [s.figures[figure] for s in found], label=outcome.name
            )
        if figure in outcomes[0].target:
            axes.axhline(outcomes[0].target[figure], linestyle="--", linewidth=1, color="grey")
        axes.set_xlabel(label)
        axes.set_ylabel(f"held-out {figure}")
        axes.set_xlim(left=0)

    return part


def _staleness(outcomes: Sequence[Outcome]) -> Callable[["Axes"], None]:
    def part(axes: "Axes") -> None:
        for outcome in outcomes:
            folded = sum(outcome.staleness.values()) or 1
            order = sorted(outcome.staleness)
            heights = [outcome.staleness[s] / folded for s in order]
            axes.step(order, heights, where="mid", label=outcome.name)
        axes.set_xlabel("staleness, in versions")
        axes.set_ylabel("share of the folded updates")

    return part


def _lorenz(outcomes: Sequence[Outcome]) -> Callable[["Axes"], None]:
    def part(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="grey", label="all alike")
        for outcome in outcomes:
            devices, weight = lorenz(outcome.participation.shares)
            axes.plot(
                devices, weight, label=f"{outcome.name}, gini {outcome.participation.gini:.2f}"
            )
        axes.set_xlabel("devices that contributed, least first")
        axes.set_ylabel("share of the model's weight")

    return part
