"""Recurrent layers, unrolled over a length that is fixed. Pure.

The inputs of all steps are multiplied at once; a step is one product of its state, and what follows
of it element by element. A state that begins as zeros is left out of the first step. Gates are in
ONNX's order: i o f c of an LSTM, z r h of a GRU.
"""

from collections.abc import Callable, Sequence
from typing import Final

from fedmq.onnx_training.graph import Builder
from fedmq.onnx_training.rules.op import Op

_ACTIVATIONS: Final = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


class Layer:
    """What all recurrent nodes have: W [1, gates H, I], R [1, gates H, H], B [1, 2 gates H].

    Attributes:
        steps: the length T of the sequence.
        hidden: H.
        w, r: matrices (gates H, I) and (gates H, H).
        wb, rb: their biases (gates H,), or None.
    """

    def __init__(self, op: Op, gates: int) -> None:
        """Raises ConfigError: a variant that is not unrolled."""
        _plain(op)
        self.op, self.g = op, op.build
        self.steps, _, width = op.shape()
        op.fixed((self.steps, width))
        self.hidden = op.shape(2)[2]
        rows = gates * self.hidden
        self.w = op.reshape(op.inputs[1], (rows, width))
        self.r = op.reshape(op.inputs[2], (rows, self.hidden))
        self.wb: str | None = None
        self.rb: str | None = None
        if op.has(3):
            both = op.reshape(op.inputs[3], (2 * rows,))
            self.wb, self.rb = self.g.ops("Split", both, self.g.ints([rows, rows]), outputs=2)

    def inputs(self, bias: str | None) -> list[str]:
        """W x + bias of every step, each (batch, gates H)."""
        g, width = self.g, self.op.shape()[2]
        rows = g.op("Reshape", self.op.x, g.ints([-1, width]))
        whole = g.op("Gemm", *filter(None, (rows, self.w, bias)), transB=1)
        if self.steps == 1:
            return [whole]
        return g.ops("Split", whole, outputs=self.steps, axis=0, num_outputs=self.steps)

    def state(self, name: str | None) -> str | None:
        """An initial state [1, batch, H] as (batch, H)."""
        return None if name is None else self.g.op("Reshape", name, self.g.ints([-1, self.hidden]))

    def cut(self, name: str, gates: Sequence[int]) -> list[str]:
        """Split (batch, gates H) into so many gates each."""
        sizes = self.g.ints(n * self.hidden for n in gates)
        return self.g.ops("Split", name, sizes, outputs=len(gates), axis=1)

    def outputs(self, states: Sequence[str]) -> list[str]:
        """Y [T, 1, batch, H], and Y_h [1, batch, H]."""
        g = self.g
        whole = states[0] if len(states) == 1 else g.op("Concat", *states, axis=0)
        y = g.op("Reshape", whole, g.ints([self.steps, 1, -1, self.hidden]))
        return [y, self.last(states[-1])]

    def last(self, state: str) -> str:
        """A final state as [1, batch, H]."""
        return self.g.op("Reshape", state, self.g.ints([1, -1, self.hidden]))


def _plain(op: Op) -> None:
    kind = op.node.op_type
    given = op.attribute("activations")
    activations = [v.decode() for v in given] if isinstance(given, list) else _ACTIVATIONS[kind]
    refusals = (
        (op.text("direction", "forward") != "forward", 'direction must be "forward"'),
        (activations != _ACTIVATIONS[kind], f"activations must be {_ACTIVATIONS[kind]}"),
        (op.attribute("clip") is not None, "must not clip"),
        (op.integer("layout", 0) != 0, "layout must be 0: time before batch"),
        (op.integer("input_forget", 0) != 0, "input and forget gates must not be coupled"),
        (op.has(4), "must not be given sequence lengths: every example is as long"),
        (op.has(7), "must have no peepholes"),
    )
    for refused, remedy in refusals:
        if refused:
            op.refuse(remedy)


def _steps(
    inputs: Sequence[str], state: str | None, step: Callable[[str, str | None], str]
) -> list[str]:
    states = []
    for x in inputs:
        state = step(x, state)
        states.append(state)
    return states


def lstm(op: Op, initial: Sequence[str | None]) -> list[str]:
    """The cell c = f c + i tanh(.), the state h = o tanh(c).

    Hochreiter and Schmidhuber 1997, with the forget gates of Gers et al. 2000.
    """
    layer = Layer(op, 4)
    g: Builder = op.build
    bias = g.op("Add", layer.wb, layer.rb) if layer.wb and layer.rb else None
    cell = layer.state(initial[1])

    def step(x: str, state: str | None) -> str:
        nonlocal cell
        gates = x if state is None else g.op("Gemm", state, layer.r, x, transB=1)
        soft, new = layer.cut(gates, (3, 1))
        i, o, f = layer.cut(g.op("Sigmoid", soft), (1, 1, 1))
        new = g.op("Mul", i, g.op("Tanh", new))
        cell = new if cell is None else g.op("Add", g.op("Mul", f, cell), new)
        return g.op("Mul", o, g.op("Tanh", cell))

    states = _steps(layer.inputs(bias), layer.state(initial[0]), step)
    return [*layer.outputs(states), layer.last(cell or "")]


def gru(op: Op, initial: Sequence[str | None]) -> list[str]:
    """The state h = n + z (h - n), with the new n of a state that r has reset (Cho et al. 2014)."""
    layer = Layer(op, 3)
    g = op.build
    after = bool(op.integer("linear_before_reset", 0))
    bias = layer.wb
    if layer.wb and layer.rb and not after:
        bias = g.op("Add", layer.wb, layer.rb)
    gated = _reset_after if after else _reset_before

    def step(x: str, state: str | None) -> str:
        z, n = gated(layer, x, state)
        if state is None:
            return g.op("Sub", n, g.op("Mul", z, n))
        return g.op("Add", n, g.op("Mul", z, g.op("Sub", state, n)))

    return layer.outputs(_steps(layer.inputs(bias), layer.state(initial[0]), step))


def _reset_before(layer: Layer, x: str, state: str | None) -> tuple[str, str]:
    """The gate z, and n = tanh(W x + R (r h))."""
    g, size = layer.g, layer.hidden
    gates, new = layer.cut(x, (2, 1))
    soft, last = g.ops("Split", layer.r, g.ints([2 * size, size]), outputs=2, axis=0)
    if state is not None:
        gates = g.op("Gemm", state, soft, gates, transB=1)
    z, r = layer.cut(g.op("Sigmoid", gates), (1, 1))
    if state is not None:
        new = g.op("Gemm", g.op("Mul", r, state), last, new, transB=1)
    return z, g.op("Tanh", new)


def _reset_after(layer: Layer, x: str, state: str | None) -> tuple[str, str]:
    """The gate z, and n = tanh(W x + r (R h + b)): as PyTorch and cuDNN have it."""
    g = layer.g
    gates, new = layer.cut(x, (2, 1))
    inner = None
    if state is not None:
        product = g.op("Gemm", *filter(None, (state, layer.r, layer.rb)), transB=1)
        more, inner = layer.cut(product, (2, 1))
        gates = g.op("Add", gates, more)
    elif layer.rb is not None:
        sizes = g.ints([2 * layer.hidden, layer.hidden])
        more, inner = g.ops("Split", layer.rb, sizes, outputs=2)
        gates = g.op("Add", gates, more)
    z, r = layer.cut(g.op("Sigmoid", gates), (1, 1))
    if inner is not None:
        new = g.op("Add", new, g.op("Mul", r, inner))
    return z, g.op("Tanh", new)


def rnn(op: Op, initial: Sequence[str | None]) -> list[str]:
    """The state h = tanh(W x + R h)."""
    layer = Layer(op, 1)
    g = op.build
    bias = g.op("Add", layer.wb, layer.rb) if layer.wb and layer.rb else None

    def step(x: str, state: str | None) -> str:
        return g.op("Tanh", x if state is None else g.op("Gemm", state, layer.r, x, transB=1))

    return layer.outputs(_steps(layer.inputs(bias), layer.state(initial[0]), step))
