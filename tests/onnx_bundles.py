"""Tiny bundles, written out by hand: tests of the device need no autodiff.

softmax    x (*shape) -> classes; tensors W (d, c), b (c)
line       x (d) -> one number, less a running mean of x: a buffer that is measured
"""

from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from schemas.bundle import Bundle, BundleManifest, Port, pack_bundle, read_bundle
from schemas.params import ParamSpec, TensorSpec

OPSET, IR = 18, 8


def softmax_params(d: int, c: int) -> ParamSpec:
    return ParamSpec((TensorSpec("W", (d, c)), TensorSpec("b", (c,))))


def softmax_packed(shape: tuple[int, ...] = (4,), classes: int = 3) -> bytes:
    d, c = prod(shape), classes
    constants = {
        "sizes": _ints([d * c, c]),
        "w_shape": _ints([d, c]),
        "flat": _ints([-1, d]),
        "row": _ints([-1]),
        "axis0": _ints([0]),
        "axis1": _ints([1]),
        "depth": _ints([c]),
        "off_on": np.array([0, 1], np.float32),
        "zero": np.array(0, np.int64),
    }
    nodes = [
        _node("Split", ["theta", "sizes"], ["w_flat", "b"], axis=0),
        _node("Reshape", ["w_flat", "w_shape"], ["W"]),
        _node("Reshape", ["x", "flat"], ["rows"]),
        _node("MatMul", ["rows", "W"], ["products"]),
        _node("Add", ["products", "b"], ["scores"]),
        _node("LogSoftmax", ["scores"], ["logs"], axis=1),
        _node("OneHot", ["label", "depth", "off_on"], ["hot"], axis=-1),
        _node("Mul", ["logs", "hot"], ["picked"]),
        _node("ReduceSum", ["picked", "axis1"], ["told"], keepdims=0),
        _node("ReduceMean", ["told"], ["mean"], keepdims=0),
        _node("Neg", ["mean"], ["loss"]),
        _node("Exp", ["logs"], ["probabilities"]),
        _node("Sub", ["probabilities", "hot"], ["slopes"]),
        _node("Shape", ["label"], ["n_shape"]),
        _node("Gather", ["n_shape", "zero"], ["n_int"], axis=0),
        _node("Cast", ["n_int"], ["n"], to=TensorProto.FLOAT),
        _node("Div", ["slopes", "n"], ["slope"]),
        _node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        _node("MatMul", ["columns", "slope"], ["dW"]),
        _node("Reshape", ["dW", "row"], ["dW_flat"]),
        _node("ReduceSum", ["slope", "axis0"], ["db"], keepdims=0),
        _node("Concat", ["dW_flat", "db"], ["gradient"], axis=0),
    ]
    params = softmax_params(d, c)
    step = _model(
        nodes,
        [_in("x", shape), _in("label", (), TensorProto.INT64), _vector("theta", params.size)],
        [helper.make_tensor_value_info("loss", TensorProto.FLOAT, []), _vector("gradient")],
        constants,
    )
    infer = _model(
        [
            _node("Reshape", ["x", "flat"], ["rows"]),
            _node("MatMul", ["rows", "W"], ["products"]),
            _node("Add", ["products", "b"], ["scores"]),
        ],
        [_in("x", shape)],
        [_in("scores", (c,))],
        {"flat": constants["flat"]},
    )
    label = Port("label", "int64")
    return _pack("cross-entropy", Port("x", "float32", shape), label, c, params, step, infer)


def line_packed(d: int = 3) -> bytes:
    params = ParamSpec(
        (TensorSpec("w", (d, 1)), TensorSpec("seen", (d,), "buffer"), TensorSpec("b", (1,)))
    )
    constants = {
        "sizes": _ints([d, d, 1]),
        "w_shape": _ints([d, 1]),
        "row": _ints([-1]),
        "axis0": _ints([0]),
        "kept": np.array(0.9, np.float32),
        "fresh": np.array(0.1, np.float32),
        "two": np.array(2, np.float32),
        "none": np.zeros(d, np.float32),
        "zero": np.array(0, np.int64),
    }
    nodes = [
        _node("Split", ["theta", "sizes"], ["w_flat", "seen", "b"], axis=0),
        _node("Reshape", ["w_flat", "w_shape"], ["w"]),
        _node("Sub", ["x", "seen"], ["rows"]),
        _node("MatMul", ["rows", "w"], ["products"]),
        _node("Add", ["products", "b"], ["told"]),
        _node("Sub", ["told", "label"], ["off"]),
        _node("Mul", ["off", "off"], ["squares"]),
        _node("ReduceMean", ["squares"], ["loss"], keepdims=0),
        _node("Shape", ["label"], ["n_shape"]),
        _node("Gather", ["n_shape", "zero"], ["n_int"], axis=0),
        _node("Cast", ["n_int"], ["n"], to=TensorProto.FLOAT),
        _node("Mul", ["off", "two"], ["twice"]),
        _node("Div", ["twice", "n"], ["slope"]),
        _node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        _node("MatMul", ["columns", "slope"], ["dw"]),
        _node("Reshape", ["dw", "row"], ["dw_flat"]),
        _node("ReduceSum", ["slope", "axis0"], ["db"], keepdims=0),
        _node("Concat", ["dw_flat", "none", "db"], ["gradient"], axis=0),
        _node("ReduceMean", ["x", "axis0"], ["now"], keepdims=0),
        _node("Mul", ["now", "fresh"], ["now_part"]),
        _node("Mul", ["seen", "kept"], ["seen_part"]),
        _node("Add", ["now_part", "seen_part"], ["buffers"]),
    ]
    step = _model(
        nodes,
        [_in("x", (d,)), _in("label", (1,)), _vector("theta", params.size)],
        [
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
            _vector("gradient"),
            _vector("buffers", d),
        ],
        constants,
    )
    infer = _model(
        [
            _node("Sub", ["x", "seen"], ["rows"]),
            _node("MatMul", ["rows", "w"], ["products"]),
            _node("Add", ["products", "b"], ["scores"]),
        ],
        [_in("x", (d,))],
        [_in("scores", (1,))],
        {},
    )
    label = Port("label", "float32", (1,))
    return _pack("mse", Port("x", "float32", (d,)), label, 1, params, step, infer)


def softmax_bundle(shape: tuple[int, ...] = (4,), classes: int = 3) -> Bundle:
    return read_bundle(softmax_packed(shape, classes))


def line_bundle(d: int = 3) -> Bundle:
    return read_bundle(line_packed(d))


def _pack(  # noqa: PLR0917 - the parts of a bundle in their order
    loss: Any,
    x: Port,
    label: Port,
    outputs: int,
    params: ParamSpec,
    step: bytes,
    infer: bytes,
) -> bytes:
    manifest = BundleManifest(
        opset=OPSET,
        ir=IR,
        loss=loss,
        x=x,
        label=label,
        output=Port("scores", "float32", (outputs,)),
        params=params,
        step_sha256=sha256(step).hexdigest(),
        step_bytes=len(step),
        infer_sha256=sha256(infer).hexdigest(),
        infer_bytes=len(infer),
    )
    return pack_bundle(manifest, step, infer)


def _ints(values: list[int]) -> Any:
    return np.array(values, np.int64)


def _node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes)


def _in(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _vector(name: str, size: int | None = None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Any) -> bytes:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString())
