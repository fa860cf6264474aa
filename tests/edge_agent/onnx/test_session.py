import os
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnx_bundles
import pytest
import servers
from onnx import TensorProto, helper, numpy_helper

from edge_agent.onnx.session import session_of, threads_or_default
from schemas.onnx_file import with_parameters
from schemas.protobuf import head, number

ort = pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")


def test_threads_do_not_spin_unless_they_are_told_to() -> None:
    step = onnx_bundles.softmax_bundle().step
    for spinning in (False, True):
        options: Any = session_of(step, what="step.onnx", spinning=spinning).get_session_options()
        for pool in ("intra", "inter"):
            entry = options.get_session_config_entry(f"session.{pool}_op.allow_spinning")
            assert entry == str(int(spinning))


def test_bytes_that_are_two_formats_are_loaded_as_the_one_that_was_checked() -> None:
    """Left to itself onnxruntime takes `ORTM` at byte 4 for its own format."""
    step = onnx_bundles.softmax_bundle().step
    session: Any = session_of(number(1, 8) + head(2, 4) + b"ORTM" + step, what="step.onnx")
    assert {port.name for port in session.get_inputs()} == {"x", "label", "theta"}


def bomb(elements: int) -> bytes:
    """y = x + the sum of a constant of so many elements."""
    many = numpy_helper.from_array(np.array([elements], np.int64), "many")
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "bomb", [x], [y], [many])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(made.SerializeToString())


def test_nothing_of_a_graph_is_computed_while_it_is_loaded() -> None:
    told = f"""
import resource
from edge_agent.onnx.session import session_of
session_of({onnx_bundles.softmax_bundle().step!r}, what="step.onnx", threads=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session_of({bomb(1 << 27)!r}, what="step.onnx", threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10, "512 MB were filled with zeros"


def test_one_core_is_left_for_everything_else() -> None:
    assert threads_or_default(3) == 3
    assert threads_or_default(0) == max(1, (os.cpu_count() or 1) - 1)
    session: Any = session_of(onnx_bundles.softmax_bundle().step, what="step.onnx", threads=2)
    assert session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("model", [b"", b"garbage", onnx_bundles.softmax_bundle().infer], ids=len)
def test_what_onnxruntime_refuses_is_a_sentence(model: bytes) -> None:
    with pytest.raises(ValueError, match=r"infer\.onnx: onnxruntime [0-9.]+: .*import the model"):
        session_of(model, what="infer.onnx")


def conv_graph() -> bytes:
    """A convolution of 16 channels, which onnxruntime lays out anew, without its weights."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["up"]),
        helper.make_node("Conv", ["up", "v"], ["scores"], pads=[1, 1, 1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 12, 12])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 16, 12, 12])
    graph = helper.make_graph(nodes, "conv", [x], [scores])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_a_convolution_is_served_with_the_weights_that_it_was_given() -> None:
    """`SessionOptions.add_initializer` would keep those of another model, and say nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 12, 12)).astype(np.float32)
    for _ in range(2):
        tensors = {
            "w": rng.normal(size=(16, 16, 3, 3)).astype(np.float32),
            "b": rng.normal(size=16).astype(np.float32),
            "v": rng.normal(size=(16, 16, 3, 3)).astype(np.float32),
        }
        session = session_of(with_parameters(conv_graph(), tensors), what="infer.onnx")
        (found,) = session.run(["scores"], {"x": x})
        assert found == pytest.approx(reference(tensors, x), abs=2e-3)


def reference(tensors: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """The same with the weights as inputs, and nothing optimised."""
    model = onnx.load_from_string(conv_graph())
    for name, array in tensors.items():
        port = helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        model.graph.input.append(port)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x, **tensors})[0]


@pytest.mark.parametrize(
    "room", ["edge_agent.agent", "edge_agent.__main__", "edge_agent.onnx.bundled"]
)
def test_a_device_without_a_bundle_does_not_pay_for_onnxruntime(room: str) -> None:
    heavy = ("onnxruntime", "onnx", "pyarrow")
    told = f"import sys, {room}; print([m for m in {heavy} if m in sys.modules])"
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        ("ModuleNotFoundError('No module')", "ConfigError", "pip install 'fedmq[onnx-runtime]'"),
        ("ImportError('no libstdc++')", "ConfigError", "does not load on this device: no libstd"),
        ("ImportError('initialization failed') from KeyboardInterrupt()", "KeyboardInterrupt", ""),
    ],
)
def test_only_what_is_not_there_is_to_be_installed(raised: str, kind: str, told: str) -> None:
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime": raise {raised}
sys.meta_path.insert(0, Finder())
from edge_agent.onnx.session import session_of
try:
    session_of(b"", what="it")
except BaseException as exc:
    print(type(exc).__name__, exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=servers.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(kind)
    assert told in done.stdout
