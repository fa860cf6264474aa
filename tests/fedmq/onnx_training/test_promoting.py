"""The silent traps of exporters, each with the guard that it fails without."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fedmq.onnx_training import build
from fedmq.onnx_training.graph import Builder, Tensor
from fedmq.onnx_training.promoting import promote
from fedmq.onnx_training.rules import RULES
from fedmq.onnx_training.rules.op import Op
from fedmq.onnx_training.settling import settle
from schemas.errors import ConfigError
from schemas.onnx_file import with_parameters

TWO_NORMS = (
    "h = LayerNormalization(input, s, c) k = MatMul(h, w) g = LayerNormalization(k, s, c) "
    "y = Tanh(g)"
)
NORM = {"s": (4,), "c": (4,), "w": (4, 4)}


def gradient_of(built, run, rng):
    """The gradient at the model's own values, by tensor."""
    params = built.bundle.manifest.params
    theta = np.concatenate([built.theta0[t.name].ravel() for t in params.tensors])
    x = built.bundle.manifest.x
    feeds = {
        "x": rng.normal(size=(5, *x.shape)).astype(np.float32),
        "label": rng.normal(size=(5, *built.bundle.manifest.output.shape)).astype(np.float32),
        "theta": theta,
    }
    flat = run(built.bundle.step)(feeds)[1]
    ends = np.cumsum([t.size for t in params.tensors])
    return dict(zip((t.name for t in params.tensors), np.split(flat, ends[:-1]), strict=True))


def test_an_initializer_that_two_nodes_share_is_told(model) -> None:
    notes = promote(model(TWO_NORMS, (3, 4), NORM)).notes
    assert len(notes) == 1
    assert "as one: 's', 'c'. Right" in notes[0]
    assert "optimize=False" in notes[0]


def test_an_initializer_that_is_taken_apart_is_not_shared(model) -> None:
    body = "a = Slice(w, zero, one) b = Slice(w, one, two) h = Mul(input, a) y = Mul(h, b)"
    constants = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    assert not promote(model(body, (3, 4), {"w": (2, 4)} | constants)).notes


def test_equal_initializers_stay_two(model, run, rng) -> None:
    body = TWO_NORMS.replace("(k, s, c)", "(k, s2, c2)")
    one, zero = np.ones(4), np.zeros(4)
    weights = {"s": one, "c": zero, "s2": one, "c2": zero, "w": (4, 4)}
    built = build(model(body, (3, 4), weights), loss="mse", run=run, rng=rng)
    assert set(built.theta0) == set(weights)
    found = gradient_of(built, run, rng)
    assert not np.allclose(found["s"], found["s2"], atol=1e-4)


def test_what_is_computed_of_parameters_is_not_folded_into_one(model, run, rng) -> None:
    body = "k = Mul(w, scale) y = Conv(input, k)"
    weights = {"w": (3, 2, 2, 2), "scale": (3, 1, 1, 1)}
    built = build(model(body, (2, 4, 4), weights), loss="mse", run=run, rng=rng)
    assert set(built.theta0) == {"w", "scale"}
    assert all(np.abs(part).max() > 1e-4 for part in gradient_of(built, run, rng).values())


def test_normalisation_is_not_folded_into_its_convolution(model, run, rng) -> None:
    body = "h = Conv(input, w) y = BatchNormalization(h, s, c, mean, var)"
    weights = {"w": (3, 2, 2, 2), "s": (3,), "c": (3,), "mean": (3,), "var": np.ones(3)}
    built = build(model(body, (2, 4, 4), weights), loss="mse", run=run, rng=rng)
    assert set(built.theta0) == set(weights)
    infer = onnx.load_from_string(built.bundle.infer)
    assert [node.op_type for node in infer.graph.node] == ["Conv", "BatchNormalization"]


IDIOM = (
    "d = Shape(input) n = Gather<axis = 0>(d, zero) i = Unsqueeze(n, zero) "
    "t = Concat<axis = 0>(i, minus) f = Reshape(input, t) q = CastLike(half, input) "
    "h = Mul(f, q) k = MatMul(h, w) m = Shape<start = 1>(k) r = Cast<to = 1>(m) "
    "s = Sqrt(r) y = Div(k, s)"
)
IDIOM_CONSTANTS = {
    "zero": np.array(0),
    "minus": np.array([-1]),
    "half": np.array(2),
    "w": (12, 3),
}


def test_arithmetic_on_shapes_is_settled(model) -> None:
    constants = IDIOM_CONSTANTS | {"zero": np.array([0]), "minus": np.array([-1])}
    body = IDIOM.replace(
        "n = Gather<axis = 0>(d, zero) i = Unsqueeze(n, zero) ", "i = Gather(d, zero) "
    )
    net, known = settle(promote(model(body, (3, 4), constants)).net)
    assert [node.op_type for node in net.nodes] == ["Reshape", "Mul", "MatMul", "Div"]
    assert known[net.nodes[0].output[0]].shape == (-1, 12)


def test_an_average_that_rounds_up_is_padded_for_old_runtimes(model, run, rng) -> None:
    pool = "AveragePool<kernel_shape = [3], strides = [2], ceil_mode = 1, count_include_pad = 1"
    made = model(f"h = Mul(input, w) y = {pool}>(h)", (2, 6), {"w": (2, 6)})
    net, _ = settle(promote(made).net)
    (node,) = [n for n in net.nodes if n.op_type == "AveragePool"]
    told = {a.name: list(a.ints) for a in node.attribute}
    assert told == {"kernel_shape": [3], "strides": [2], "pads": [0, 1]}
    x = rng.normal(size=(3, 2, 6)).astype(np.float32)
    infer = build(made, loss="mse", run=run, rng=rng).bundle.infer
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    (ours,) = run(with_parameters(infer, weights))({"x": x})
    np.testing.assert_allclose(ours, run(made.SerializeToString())({"input": x})[0], rtol=1e-6)


def test_an_average_that_rounds_up_and_counts_pads_is_refused(model) -> None:
    pool = "AveragePool<kernel_shape = [3], strides = [2], pads = [1, 1], ceil_mode = 1"
    made = model(f"h = Mul(input, w) y = {pool}, count_include_pad = 1>(h)", (2, 6), {"w": (2, 6)})
    with pytest.raises(ConfigError, match=r"AveragePool .*round down"):
        settle(promote(made).net)


def test_a_bias_that_is_computed_is_no_parameter(model, run, rng) -> None:
    body = "zeros = ConstantOfShape(three) y = Conv(input, w, zeros)"
    weights = {"w": (3, 2, 2, 2), "three": np.array([3])}
    built = build(model(body, (2, 4, 4), weights), loss="mse", run=run, rng=rng)
    assert set(built.theta0) == {"w"}


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean", "ReduceMax", "Slice", "Pad", "Tile"])
def test_a_rule_refuses_axes_that_are_no_constant(kind) -> None:
    node = helper.make_node(kind, ["h", "told", "told", "told"], ["y"], name="here")
    known = {name: Tensor((-1, 3), TensorProto.FLOAT) for name in ("h", "y", "dy")}
    with pytest.raises(ConfigError, match=f"{kind} 'here': its input 'told' must be a constant"):
        RULES[kind](Op(node, Builder(), known, ["dy"], frozenset({"h"})))


def test_statistics_are_not_trained(model, run, rng) -> None:
    body = "h = MatMul(input, w) y = BatchNormalization(h, s, c, mean, var)"
    weights = {"w": (4, 3), "s": (3,), "c": (3,), "mean": (3,), "var": np.ones(3)}
    made = model(body, (4,), weights)
    fixed = build(made, loss="mse", run=run, rng=rng).bundle.manifest.params.tensors
    measured = build(made, loss="mse", run=run, rng=rng, batch_statistics=True)
    kinds = [t.kind for t in measured.bundle.manifest.params.tensors]
    assert [t.kind for t in fixed] == ["trained"] * 3 + ["frozen"] * 2
    assert kinds == ["trained"] * 3 + ["buffer"] * 2


def test_settings_of_a_node_are_no_parameters(model) -> None:
    body = "h = Mul(input, w) k = Clip(h, low, high) y = Pow(k, two)"
    weights = {"w": (4,), "low": np.float32(0.1), "high": np.float32(1), "two": np.float32(2)}
    assert set(promote(model(body, (4,), weights)).theta0) == {"w"}


def test_what_the_output_does_not_depend_on_is_left_out(model) -> None:
    promoted = promote(
        model("h = Mul(input, dead) y = Mul(input, w)", (4,), {"w": (4,), "dead": (4,)})
    )
    assert set(promoted.theta0) == {"w"}
    assert any("dead" in note for note in promoted.notes)


def test_a_single_number_and_a_large_constant_are_told(model) -> None:
    made = model("h = Mul(input, t) y = Add(h, big)", (4, 20), {"t": np.float32(2), "w": (1,)})
    big = helper.make_tensor("big", TensorProto.FLOAT, (4, 20), np.ones(80))
    made.graph.node.insert(0, helper.make_node("Constant", [], ["big"], value=big))
    notes = " ".join(promote(made).notes)
    assert "'t' is a single number" in notes
    assert "80 numbers that are not trained" in notes


@pytest.mark.parametrize(("opset", "ours"), [(13, 18), (18, 18), (19, 19), (20, 20), (21, 20)])
def test_a_model_of_another_opset_is_converted(opset, ours, model, run, rng) -> None:
    made = model("h = Gemm(input, w) y = Softmax(h)", (4,), {"w": (4, 3)}, opset=opset)
    manifest = build(made, loss="mse", run=run, rng=rng).bundle.manifest
    assert manifest.opset == ours
    assert manifest.ir <= 10


def test_a_model_of_the_oldest_kind_is_read(model, run, rng) -> None:
    made = model(
        "h = Gemm(input, w, b) y = Dropout<ratio = 0.5>(h)", (4,), {"w": (4, 3), "b": (3,)}, opset=9
    )
    made.ir_version = 3
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    built = build(made, loss="mse", run=run, rng=rng)
    assert set(built.theta0) == {"w", "b"}


def test_a_model_that_cannot_be_converted_is_refused(model) -> None:
    made = model("h = Gemm(input, w) y = Swish(h)", (4,), {"w": (4, 3)}, opset=24)
    with pytest.raises(ConfigError, match=r"opset 24, .*export it at opset 18"):
        promote(made)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.graph.input.add(name="more"), "one input and one output"),
        (lambda m: m.graph.ClearField("initializer"), "nothing can be trained"),
        (
            lambda m: m.graph.initializer[0].__setattr__("data_location", TensorProto.EXTERNAL),
            "external data",
        ),
        (lambda m: m.graph.node[0].__setattr__("domain", "com.example"), "com.example"),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_param", "T"),
            "open dimensions",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(change, sentence, model) -> None:
    made = model("y = Gemm(input, w)", (4,), {"w": (4, 3)})
    change(made)
    if "com.example" in sentence:
        made.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ConfigError, match=sentence):
        promote(made)


def test_an_open_dimension_can_be_told(model, run, rng) -> None:
    made = model(
        "h = MatMul(input, w) y = ReduceMean<keepdims = 0>(h, one)",
        ("T", 4),
        {"w": (4, 3), "one": np.array([1])},
    )
    built = build(made, loss="mse", run=run, rng=rng, x_shape=(6, 4))
    assert built.bundle.manifest.x.shape == (6, 4)


def test_a_graph_for_one_batch_size_is_refused(model, run, rng) -> None:
    weights = {"w": (4, 3), "shape": np.array([2, 2, 3])}
    made = model("h = MatMul(input, w) y = Reshape(h, shape)", (2, 4), weights)
    with pytest.raises(ConfigError, match="batch"):
        build(made, loss="mse", run=run, rng=rng)
