"""Samples for a bundle's training step, from the data that devices have.

CSV, .npz, Parquet    read once, when the bundle is here (`files`)
module:function       the user's own, returns (x, y)
mqtt:TOPIC            a live sensor topic, windowed into samples (`live`)
"""

from pathlib import Path

from edge_agent.sources.files import check_data, fitted, read
from edge_agent.sources.samples import Fit, Held, Samples, Source, samples_of, split

__all__ = ["Fit", "Held", "Samples", "Source", "check_data", "load", "samples_of", "split"]


def load(what: str, fit: Fit, scale_file: Path) -> Samples:
    """Read, scale and shape the samples that a user names.

    Args:
        what: a file, a folder or MODULE:FUNCTION.
        fit: the bundle's ports and the task's [input].
        scale_file: where the device keeps its own scale.

    Raises:
        ConfigError: it is of no kind that is understood, or needs a library that is not here.
        ValueError: it cannot be read or does not fit.
    """
    return fitted(read(what, fit), fit, scale_file, what)
