"""An onnxruntime session from bytes: few threads, no spinning. onnxruntime is imported only here.

A session that serves is built anew for every model (`schemas.onnx_file.with_parameters`):
`SessionOptions.add_initializer` would do without, but keeps stale weights of convolutions at the
default optimisation level and says nothing.

Nothing is computed while a session is built: a graph of some hundred bytes may have constants that
fold into gigabytes, or take hours. Measured on onnxruntime 1.18.1 and 1.32, training and inference
are as fast without (`benchmarks.learning.onnx_models`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError

_SAFE: Final = {
    "session.load_model_format": "ONNX",
    "optimization.disable_specified_optimizers": "ConstantFolding",
}
"""How onnxruntime 1.18 and later loads a stranger's model: as what `check_graph` has read, and not
as its own format, which it would guess by four bytes; and without computing any of it."""

_FATAL: Final = 4
"""Of onnxruntime's log levels: what goes wrong is raised, and told by whoever catches it."""


class Session(Protocol):
    """What is used of onnxruntime's InferenceSession."""

    def run(
        self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[np.generic]]
    ) -> list[NDArray[np.generic]]:
        """Compute the named outputs; None: all."""
        ...


def opened(
    model: bytes,
) -> Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]:
    """A model as a function of its inputs, on one thread: what a new bundle is checked with."""
    session = session_of(model, what="the graph", threads=1)
    return lambda feeds: session.run(None, feeds)


def threads_or_default(threads: int) -> int:
    """So many threads; of 0 all cores but one, and at least one."""
    return threads or max(1, (os.cpu_count() or 1) - 1)


def session_of(model: bytes, *, what: str, threads: int = 0, spinning: bool = False) -> Session:
    """Load a model.

    Args:
        model: a serialised ModelProto.
        what: how a refusal calls it.
        threads: that share one operator; 0: all cores but one.
        spinning: whether threads wait busily for the next operator: faster on an idle machine,
            slower on one that has other work to do.

    Raises:
        ConfigError: onnxruntime is not installed.
        ValueError: onnxruntime refuses the model.
    """
    try:
        import onnxruntime as ort  # noqa: PLC0415 - 37 MB that a device without a bundle saves
    except ModuleNotFoundError as exc:
        remedy = "needs onnxruntime on this device: pip install 'fedmq[onnx-runtime]'"
        raise ConfigError("bundle", f"{remedy} ({exc})") from exc
    except ImportError as exc:  # it is there; a Ctrl-C within it ends up here, too
        if isinstance(exc.__cause__ or exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exc
        raise ConfigError("bundle", f"onnxruntime does not load on this device: {exc}") from exc
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = threads_or_default(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    for key, entry in _SAFE.items():
        options.add_session_config_entry(key, entry)
    spin = str(int(spinning))
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    options.add_session_config_entry("session.inter_op.allow_spinning", spin)
    try:
        session: Session = ort.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as exc:
        remedy = "import the model again (fedmq model import), or update onnxruntime"
        raise ValueError(f"{what}: onnxruntime {ort.__version__}: {exc}; {remedy}") from exc
    return session
