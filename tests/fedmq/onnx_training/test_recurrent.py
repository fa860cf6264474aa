"""Recurrent layers: unrolled as onnxruntime runs them, or refused by name."""

import numpy as np
import pytest

from fedmq.onnx_training import build
from schemas.errors import ConfigError

CELLS = [("LSTM", 4, ""), ("GRU", 3, ", linear_before_reset = 1"), ("GRU", 3, ""), ("RNN", 1, "")]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("biased", [True, False])
def test_a_recurrent_layer_is_unrolled(cell, biased, model, run, rng) -> None:
    kind, gates, attributes = cell
    given = "t, w, r, b" if biased else "t, w, r"
    body = (
        "t = Transpose<perm = [1, 0, 2]>(input) "
        f"s, last = {kind}<hidden_size = 3{attributes}>({given}) "
        "q = Squeeze(s, one) p = Transpose<perm = [1, 0, 2]>(q) g = Gather<axis = 1>(p, index) "
        "l = Squeeze(last, zero) m = Mul(g, l) y = Add(m, l)"
    )
    weights = {"w": (1, gates * 3, 2), "r": (1, gates * 3, 3), "b": (1, gates * 6)}
    weights = {name: shape for name, shape in weights.items() if biased or name != "b"}
    constants = {"one": np.array([1]), "zero": np.array([0]), "index": np.array(2)}
    made = model(body, (5, 2), weights | constants)
    assert build(made, loss="mse", run=run, rng=rng).gradient_error < 2e-2


def test_a_recurrent_layer_begins_with_the_states_it_is_given(model, run, rng) -> None:
    body = (
        "t = Transpose<perm = [1, 0, 2]>(input) f = Gather<axis = 1>(input, zero) "
        "h = MatMul(f, m) i = Unsqueeze(h, axis) c = Tanh(i) "
        "s, last, cell = LSTM<hidden_size = 3>(t, w, r, b, , i, c) "
        "both = Concat<axis = 2>(last, cell) y = Squeeze(both, axis)"
    )
    weights = {"w": (1, 12, 2), "r": (1, 12, 3), "b": (1, 24), "m": (2, 3)}
    constants = {"axis": np.array([0]), "zero": np.array(0)}
    made = model(body, (4, 2), weights | constants)
    assert build(made, loss="mse", run=run, rng=rng).gradient_error < 2e-2


RECURRENT = {
    "direction": 'LSTM<hidden_size = 2, direction = "reverse">(t, w, r, b)',
    "lengths": "LSTM<hidden_size = 2>(t, w, r, b, n)",
    "peepholes": "LSTM<hidden_size = 2>(t, w, r, b, , , , p)",
    "clip": "LSTM<hidden_size = 2, clip = 1.0>(t, w, r, b)",
    "coupled": "LSTM<hidden_size = 2, input_forget = 1>(t, w, r, b)",
    "activations": 'LSTM<hidden_size = 2, activations = ["Sigmoid", "Relu", "Tanh"]>(t, w, r, b)',
}


@pytest.mark.parametrize("what", RECURRENT)
def test_a_recurrent_layer_that_is_not_unrolled_is_refused(what, model, run, rng) -> None:
    weights = {"w": (1, 8, 3), "r": (1, 8, 2), "b": (1, 16), "p": (1, 6)}
    made = model(
        f"t = Transpose<perm = [1, 0, 2]>(input) d = Shape<start = 0, end = 1>(input) "
        f"f = Expand(five, d) n = Cast<to = 6>(f) o, s = {RECURRENT[what]} y = Squeeze(s, zero)",
        (5, 3),
        weights | {"five": np.array([5]), "zero": np.array([0])},
    )
    with pytest.raises(ConfigError, match=what):
        build(made, loss="mse", run=run, rng=rng)
