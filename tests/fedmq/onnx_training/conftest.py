"""Models in ONNX's text form, and a runner over onnxruntime."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from fedmq.onnx_training import Session


@pytest.fixture
def run() -> Callable[[bytes], Session]:
    """Open a model on one thread."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime (extra onnx-runtime) runs graphs")

    def opened(data: bytes) -> Session:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, dict(feeds))

    return opened


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def model(rng) -> Callable[..., onnx.ModelProto]:
    """Make a model of a body in ONNX's text form, from `input` to `y`.

    Weights are arrays, or shapes to draw them in.
    """

    def make(
        body: str,
        x: tuple[int, ...] = (3, 4),
        weights: Mapping[str, tuple[int, ...] | NDArray[Any]] | None = None,
        *,
        opset: int = 18,
        kind: str = "float",
    ) -> onnx.ModelProto:
        head = f'<ir_version: 8, opset_import: ["": {opset}]>'
        dims = ",".join(map(str, ("N", *x)))
        made = onnx.parser.parse_model(f"{head} g ({kind}[{dims}] input) => (float[] y) {{{body}}}")
        made.graph.output[0].type.tensor_type.ClearField("shape")
        for name, weight in (weights or {}).items():
            array = rng.normal(size=weight) if isinstance(weight, tuple) else weight
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
            made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return made

    return make
