"""An ordinary inference model for the pumps, as any exporter writes one: 3 sensors -> 2 logits.

python -m examples.pump_faults.make_model pump.onnx
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 8


def model() -> onnx.ModelProto:
    """Two dense layers; a model of yours comes from wherever you train or export."""
    rng = np.random.default_rng(0)  # noqa: TID251 - a script makes its own
    weights = {
        "hidden.weight": rng.normal(0, 0.5, (3, HIDDEN)),
        "hidden.bias": np.zeros(HIDDEN),
        "head.weight": rng.normal(0, 0.5, (HIDDEN, 2)),
        "head.bias": np.zeros(2),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "hidden.weight", "hidden.bias"], ["h"], name="hidden"),
        helper.make_node("Tanh", ["h"], ["a"], name="tanh"),
        helper.make_node("Gemm", ["a", "head.weight", "head.bias"], ["logits"], name="head"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    tensors = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()]
    graph = helper.make_graph(nodes, "pump", [x], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


if __name__ == "__main__":
    onnx.save(model(), sys.argv[1])
