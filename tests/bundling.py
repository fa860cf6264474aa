"""Small bundles for tests: graphs that any onnxruntime loads, and that compute next to nothing."""

from hashlib import sha256

from onnx import TensorProto, helper

from schemas.bundle import BundleManifest, Port, pack_bundle
from schemas.params import ParamSpec


def graph(
    name: str, *, operator: str = "Relu", opset: int = 18, ir: int = 10, ballast: bytes = b""
) -> bytes:
    """y = operator(x); the ballast is a constant that nobody uses."""
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, ["x"], ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor("ballast", TensorProto.UINT8, [len(ballast)], ballast, raw=True)],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    made.ir_version = ir
    serialised: bytes = made.SerializeToString()
    return serialised


STEP, INFER = graph("step"), graph("infer")


def manifest(
    params: ParamSpec, step: bytes = STEP, infer: bytes = INFER, **others: object
) -> BundleManifest:
    fields: dict[str, object] = {
        "opset": 18,
        "ir": 10,
        "loss": "mse",
        "x": Port("x", "float32", (3,)),
        "label": Port("label", "float32", (3,)),
        "output": Port("y", "float32", (3,)),
        "params": params,
        "step_sha256": sha256(step).hexdigest(),
        "step_bytes": len(step),
        "infer_sha256": sha256(infer).hexdigest(),
        "infer_bytes": len(infer),
    }
    return BundleManifest(**fields | others)


def packed(params: ParamSpec, step: bytes = STEP, infer: bytes = INFER) -> bytes:
    """A bundle for these tensors."""
    return pack_bundle(manifest(params, step, infer), step, infer)
