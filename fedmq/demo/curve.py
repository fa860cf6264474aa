"""The picture of a run: held-out accuracy over bytes sent."""

from collections.abc import Sequence
from pathlib import Path


def draw(path: Path, points: Sequence[tuple[int, float]], *, target: float, title: str) -> None:
    """Draw (bytes up, accuracy) points as a step line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - demo's extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - demo's extra

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.step([b / 1e3 for b, _ in points], [a for _, a in points], where="post", linewidth=1.8)
    axes.axhline(target, linestyle="--", linewidth=1, color="grey")
    axes.annotate(f"target {target:.0%}", (0, target), xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("kB sent by all devices (whole MQTT packets)")
    axes.set_ylabel("held-out accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
