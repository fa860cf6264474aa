"""Three ordinary inference models, written out with `onnx.helper` as any exporter would give them.

cnn      digits (1, 8, 8) -> 10 logits: two convolutions, max-pooling, two dense layers
lstm     turbofan windows (30, 14) -> remaining life: an LSTM of 32 cells, one dense layer
encoder  digits as 8 rows of 8 pixels (8, 8) -> 10 logits: positions, self-attention with 2
         heads, LayerNormalization, a feed-forward layer, mean over the rows
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 18
IR: Final = 8
WINDOW: Final = 30
SENSORS: Final = 14
CELLS: Final = 32
WIDTH: Final = 32
HEADS: Final = 2


class _Graph:
    """Nodes and initializers, as they are written down."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = rng

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; its output's name."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def glorot(self, name: str, shape: tuple[int, ...], fan: int) -> str:
        """A weight, uniform within sqrt(6 / fan)."""
        bound = float(np.sqrt(6.0 / fan))
        return self.put(name, self._rng.uniform(-bound, bound, shape))

    def put(self, name: str, values: NDArray[np.floating]) -> str:
        """An initializer, float32."""
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def whole(self, name: str, values: Sequence[int]) -> str:
        """One of int64: a shape, axes."""
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def model(
        self, name: str, x: tuple[int, ...], output: str, shape: tuple[int, ...]
    ) -> onnx.ModelProto:
        """The whole, with an open batch."""
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x])
        found = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *shape])
        graph = helper.make_graph(self.nodes, name, [given], [found], self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR)


def cnn(rng: np.random.Generator) -> onnx.ModelProto:
    """11,482 parameters."""
    g = _Graph(rng)
    seen = "x"
    for number, (inner, outer) in enumerate(((1, 16), (16, 32)), start=1):
        fan = 9 * (inner + outer)
        weights = g.glorot(f"conv{number}.weight", (outer, inner, 3, 3), fan)
        bias = g.put(f"conv{number}.bias", np.zeros(outer))
        conv = g.op("Conv", seen, weights, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        seen = g.op("MaxPool", g.op("Relu", conv), kernel_shape=[2, 2], strides=[2, 2])
    seen = g.op("Flatten", seen)
    seen = g.op("Relu", _dense(g, "hidden", seen, 128, 48))
    return g.model("cnn", (1, 8, 8), _dense(g, "head", seen, 48, 10), (10,))


def lstm(rng: np.random.Generator) -> onnx.ModelProto:
    """6,177 parameters."""
    g = _Graph(rng)
    steps = g.op("Transpose", "x", perm=[1, 0, 2])
    names = [
        g.glorot("lstm.W", (1, 4 * CELLS, SENSORS), SENSORS + CELLS),
        g.glorot("lstm.R", (1, 4 * CELLS, CELLS), 2 * CELLS),
        g.put("lstm.B", np.zeros((1, 8 * CELLS))),
    ]
    g.nodes.append(
        helper.make_node("LSTM", [steps, *names], ["", "last"], name="lstm", hidden_size=CELLS)
    )
    flat = g.op("Squeeze", "last", g.whole("first_axis", [0]))
    return g.model("lstm", (WINDOW, SENSORS), _dense(g, "head", flat, CELLS, 1), (1,))


def encoder(rng: np.random.Generator) -> onnx.ModelProto:
    """9,258 parameters."""
    g = _Graph(rng)
    seen = g.op("MatMul", "x", g.glorot("embed.weight", (8, WIDTH), 8 + WIDTH))
    seen = g.op("Add", seen, g.put("positions", rng.normal(0, 0.1, (8, WIDTH))))
    seen = _normal(g, "attention", g.op("Add", seen, _attention(g, seen)))
    inner = g.op("MatMul", seen, g.glorot("ffn.in.weight", (WIDTH, 64), WIDTH + 64))
    inner = g.op("Relu", g.op("Add", inner, g.put("ffn.in.bias", np.zeros(64))))
    inner = g.op("MatMul", inner, g.glorot("ffn.out.weight", (64, WIDTH), WIDTH + 64))
    inner = g.op("Add", inner, g.put("ffn.out.bias", np.zeros(WIDTH)))
    seen = _normal(g, "ffn", g.op("Add", seen, inner))
    seen = g.op("ReduceMean", seen, g.whole("rows", [1]), keepdims=0)
    return g.model("encoder", (8, 8), _dense(g, "head", seen, WIDTH, 10), (10,))


def _attention(g: _Graph, seen: str) -> str:
    split, each = g.whole("heads", [0, 8, HEADS, WIDTH // HEADS]), WIDTH // HEADS
    parts = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        made = g.op("MatMul", seen, g.glorot(f"{name}.weight", (WIDTH, WIDTH), 2 * WIDTH))
        parts.append(g.op("Transpose", g.op("Reshape", made, split), perm=order))
    q, k, v = parts
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [float(each**-0.5)])
    g.nodes.append(helper.make_node("Constant", [], ["scale"], name="scale", value=scale))
    scores = g.op("Mul", g.op("MatMul", q, k), "scale")
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = g.op("Reshape", mixed, g.whole("joined", [0, 8, WIDTH]))
    return g.op("MatMul", mixed, g.glorot("o.weight", (WIDTH, WIDTH), 2 * WIDTH))


def _normal(g: _Graph, name: str, seen: str) -> str:
    scale = g.put(f"{name}.norm.weight", np.ones(WIDTH))
    bias = g.put(f"{name}.norm.bias", np.zeros(WIDTH))
    return g.op("LayerNormalization", seen, scale, bias, axis=-1, epsilon=1e-5)


def _dense(g: _Graph, name: str, seen: str, inner: int, outer: int) -> str:
    weights = g.glorot(f"{name}.weight", (inner, outer), inner + outer)
    return g.op("Gemm", seen, weights, g.put(f"{name}.bias", np.zeros(outer)))


MODELS: Final[dict[str, Callable[[np.random.Generator], onnx.ModelProto]]] = {
    "cnn": cnn,
    "lstm": lstm,
    "encoder": encoder,
}
