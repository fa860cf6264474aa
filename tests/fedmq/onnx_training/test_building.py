"""The bundle as a whole: losses, names, batches, refusals."""

import numpy as np
import onnx
import pytest

from fedmq.onnx_training import build, lowering
from fedmq.onnx_training.rules import RULES
from schemas.errors import ConfigError
from schemas.onnx_file import with_parameters
from schemas.params import flatten

MLP = "h = Gemm(input, w1, b1) a = Relu(h) y = Gemm(a, w2, b2)"
WEIGHTS = {"w1": (4, 6), "b1": (6,), "w2": (6, 3), "b2": (3,)}


def feeds_of(built, rng, batch):
    manifest = built.bundle.manifest
    wide = (batch, *manifest.label.shape)
    label = rng.integers(0, 3, wide) if manifest.label.dtype == "int64" else rng.uniform(size=wide)
    return {
        "x": rng.normal(size=(batch, *manifest.x.shape)).astype(np.float32),
        "label": label.astype(manifest.label.dtype),
        "theta": flatten(manifest.params, built.theta0),
    }


def log_softmax(z):
    return z - np.log(np.exp(z).sum(1, keepdims=True))


VALUES = {
    "cross-entropy": lambda y, t: -log_softmax(y)[np.arange(len(t)), t].mean(),
    "nll": lambda y, t: -y[np.arange(len(t)), t].mean(),
    "bce-with-logits": lambda y, t: (np.log1p(np.exp(y)) - y * t).mean(),
    "mse": lambda y, t: ((y - t) ** 2).mean(),
    "mae": lambda y, t: np.abs(y - t).mean(),
    "huber": lambda y, t: np.where(np.abs(y - t) < 1, (y - t) ** 2 / 2, np.abs(y - t) - 0.5).mean(),
}


@pytest.mark.parametrize("loss", VALUES)
def test_a_loss_is_its_formula(loss, model, run, rng) -> None:
    made = model(MLP, (4,), WEIGHTS)
    built = build(made, loss=loss, run=run, rng=rng)
    feeds = feeds_of(built, rng, 8)
    output = run(made.SerializeToString())({"input": feeds["x"]})[0].astype(np.float64)
    value, gradient = run(built.bundle.step)(feeds)
    assert value.shape == ()
    np.testing.assert_allclose(value, VALUES[loss](output, feeds["label"]), rtol=1e-5)
    assert gradient.shape == feeds["theta"].shape
    assert built.gradient_error < 2e-2


def test_one_graph_serves_every_batch(model, run, rng) -> None:
    body = (
        "c = Conv<pads = [1, 1, 1, 1]>(input, k, kb) m = MaxPool<kernel_shape = [2, 2]>(c) "
        "f = Flatten(m) y = Gemm(f, w, b)"
    )
    weights = {"k": (3, 2, 3, 3), "kb": (3,), "w": (27, 3), "b": (3,)}
    built = build(model(body, (2, 4, 4), weights), loss="cross-entropy", run=run, rng=rng)
    step, feeds = run(built.bundle.step), feeds_of(built, rng, 7)
    whole = step(feeds)
    single = [
        step({**feeds, "x": feeds["x"][i : i + 1], "label": feeds["label"][i : i + 1]})
        for i in range(7)
    ]
    for of_batch, of_each in zip(whole, zip(*single, strict=True), strict=True):
        np.testing.assert_allclose(of_batch, np.mean(of_each, axis=0), atol=1e-6)


def test_inference_with_parameters_is_the_model_that_was_given(model, run, rng) -> None:
    made = model(MLP, (4,), WEIGHTS)
    bundle = build(made, loss="mse", run=run, rng=rng).bundle
    theta0 = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    assert not onnx.load_from_string(bundle.infer).graph.initializer
    x = rng.normal(size=(5, 4)).astype(np.float32)
    (ours,) = run(with_parameters(bundle.infer, theta0))({"x": x})
    (theirs,) = run(made.SerializeToString())({"input": x})
    np.testing.assert_array_equal(ours, theirs)
    assert bundle.manifest.output.name == "y"


def test_the_same_model_gives_the_same_bytes(model, run, rng) -> None:
    made = model(MLP, (4,), WEIGHTS)
    one, two = (build(made, loss="mse", run=run, rng=rng).bundle.digest for _ in range(2))
    assert one == two


def test_no_weights_are_in_the_step(model, run, rng) -> None:
    built = build(model(MLP, (4,), WEIGHTS), loss="mse", run=run, rng=rng)
    held = [w.tobytes() for w in built.theta0.values()]
    assert not any(weights in built.bundle.step for weights in held)
    assert list(built.theta0) == [t.name for t in built.bundle.manifest.params.tensors]


def test_the_gradient_of_what_is_frozen_is_zero(model, run, rng) -> None:
    built = build(model(MLP, (4,), WEIGHTS), loss="mse", run=run, rng=rng, frozen=["w1", "b2"])
    kinds = [t.kind for t in built.bundle.manifest.params.tensors]
    assert kinds == ["frozen", "trained", "trained", "frozen"]
    gradient = run(built.bundle.step)(feeds_of(built, rng, 5))[1]
    assert not gradient[:24].any()
    assert gradient[24:-3].any()
    assert not gradient[-3:].any()
    with pytest.raises(ConfigError, match="'w9'"):
        build(model(MLP, (4,), WEIGHTS), loss="mse", run=run, rng=rng, frozen=["w9"])


def test_the_names_of_the_step_may_be_names_of_the_model(model, run, rng) -> None:
    body = (
        "loss = Gemm(input, theta, label) gradient = Relu(loss) x = Mul(gradient, loss_) y = Exp(x)"
    )
    weights = {"theta": (4, 3), "label": (3,), "loss_": (3,)}
    built = build(model(body, (4,), weights), loss="mse", run=run, rng=rng)
    assert list(built.theta0) == ["theta", "label", "loss_"]


def test_a_parameter_named_like_the_input_is_refused(model, run, rng) -> None:
    with pytest.raises(ConfigError, match="rename"):
        build(model("y = Mul(input, x)", (4,), {"x": (4,)}), loss="mse", run=run, rng=rng)


def test_statistics_are_measured_as_torch_measures_them(model, run, rng) -> None:
    body = "h = Conv(input, k) y = BatchNormalization<momentum = 0.8>(h, s, c, mean, var)"
    weights = {"k": (2, 1, 1, 1), "s": (2,), "c": (2,), "mean": (2,), "var": rng.uniform(1, 2, 2)}
    made = model(body, (1, 3, 3), weights)
    built = build(made, loss="mse", run=run, rng=rng, batch_statistics=True)
    feeds = feeds_of(built, rng, 4)
    buffers = run(built.bundle.step)(feeds)[2]
    seen = feeds["x"] * built.theta0["k"].reshape(1, 2, 1, 1)
    mean = 0.8 * built.theta0["mean"] + 0.2 * seen.mean((0, 2, 3))
    var = 0.8 * built.theta0["var"] + 0.2 * seen.transpose(1, 0, 2, 3).reshape(2, -1).var(1, ddof=1)
    np.testing.assert_allclose(buffers, [*mean, *var], rtol=1e-5)


def test_without_statistics_of_the_batch_nothing_is_measured(model, run, rng) -> None:
    built = build(model(MLP, (4,), WEIGHTS), loss="mse", run=run, rng=rng, batch_statistics=True)
    assert len(run(built.bundle.step)(feeds_of(built, rng, 3))) == 2


def test_operators_without_a_rule_are_named_together(model, run, rng) -> None:
    body = "h = Mul(input, w) k = Round(h) l = Floor(k) y = Mul(l, w)"
    with pytest.raises(ConfigError, match=r"Round \(node .*Floor \(node .*freeze"):
        build(model(body, (4,), {"w": (4,)}), loss="mse", run=run, rng=rng)


def test_an_operator_before_every_parameter_needs_no_rule(model, run, rng) -> None:
    made = model("h = Round(input) y = Mul(h, w)", (4,), {"w": (4,)})
    assert build(made, loss="mse", run=run, rng=rng).gradient_error < 1e-2


def test_a_tensor_that_no_gradient_reaches_is_named(model, run, rng) -> None:
    body = "k = Mul(input, w) c = Greater(k, input) y = Where(c, v, input)"
    made = model(body, (4,), {"w": (4,), "v": (4,)})
    with pytest.raises(ConfigError, match="no gradient reaches 'w'"):
        build(made, loss="mse", run=run, rng=rng)
    built = build(made, loss="mse", run=run, rng=rng, frozen=["w"])
    assert built.gradient_error < 2e-2


def test_a_second_output_that_is_used_is_refused(model, run, rng) -> None:
    body = "h = Mul(input, s) n, mean = LayerNormalization(h, s, c) y = Add(n, mean)"
    with pytest.raises(ConfigError, match="only its first output"):
        build(model(body, (4,), {"s": (4,), "c": (4,)}), loss="mse", run=run, rng=rng)


def test_another_precision_on_the_way_is_refused(model, run, rng) -> None:
    body = "h = Mul(input, w) k = Cast<to = 11>(h) l = Exp(k) y = Cast<to = 1>(l)"
    with pytest.raises(ConfigError, match="precision"):
        build(model(body, (4,), {"w": (4,)}), loss="mse", run=run, rng=rng)


def test_control_flow_is_refused(model, run, rng) -> None:
    branch = "g () => (float[N, 4] o) {o = Identity(h)}"
    body = (
        "h = Mul(input, w) m = ReduceMax<keepdims = 0>(h) q = Cast<to = 9>(m) "
        f"y = If<then_branch = {branch}, else_branch = {branch.replace('Identity', 'Neg')}>(q)"
    )
    with pytest.raises(ConfigError, match="If"):
        build(model(body, (4,), {"w": (4,)}), loss="mse", run=run, rng=rng)


def test_a_wrong_rule_is_found_and_the_tensor_named(model, run, rng, monkeypatch) -> None:
    monkeypatch.setitem(RULES, "Relu", lambda op: [op.dy])
    with pytest.raises(ConfigError, match=r"gradient of '(w1|b1)'"):
        build(model(MLP, (4,), WEIGHTS), loss="cross-entropy", run=run, rng=rng)


def test_a_step_that_computes_something_else_is_found(model, run, rng, monkeypatch) -> None:
    monkeypatch.setitem(lowering.LOWERINGS, "Relu", lambda op: [op.build.op("Tanh", op.x)])
    with pytest.raises(ConfigError, match="where the model loses"):
        build(model(MLP, (4,), WEIGHTS), loss="mse", run=run, rng=rng)


@pytest.mark.parametrize(
    ("loss", "last"),
    [("cross-entropy", "Softmax"), ("bce-with-logits", "Sigmoid"), ("nll", "Relu")],
)
def test_a_last_operator_that_does_not_go_with_the_loss_is_told(
    loss, last, model, run, rng
) -> None:
    made = model(f"h = Gemm(input, w) y = {last}(h)", (4,), {"w": (4, 3)})
    (note,) = build(made, loss=loss, run=run, rng=rng).notes
    assert loss in note


def test_a_loss_that_does_not_fit_is_refused(model, run, rng) -> None:
    made = model("y = MatMul(input, w)", (2, 4), {"w": (4, 3)})
    with pytest.raises(ConfigError, match="classes"):
        build(made, loss="cross-entropy", run=run, rng=rng)
    with pytest.raises(ConfigError, match="must be one of"):
        build(made, loss="hinge", run=run, rng=rng)


def test_nothing_is_computed_that_nobody_needs(model, run, rng) -> None:
    body = (
        "c = Conv(input, k) r = Relu(c) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) "
        "d = Conv(m, l) f = Flatten(d) y = Gemm(f, w)"
    )
    weights = {"k": (2, 1, 3, 3), "l": (2, 2, 1, 1), "w": (8, 3)}
    built = build(model(body, (1, 6, 6), weights), loss="cross-entropy", run=run, rng=rng)
    kinds = [node.op_type for node in onnx.load_from_string(built.bundle.step).graph.node]
    assert kinds.count("ConvTranspose") == 1, "no gradient of x"
    assert kinds.count("Conv") == 3, "a kernel of one point needs no columns"
    assert kinds.count("MaxUnpool") == 1
    assert not {"Where", "Sign", "ScatterElements"}.intersection(kinds)
