import numpy as np
import pytest

from edge_agent.onnx.losses import figures, mean_loss
from schemas.bundle import Loss

SCORES = np.array([[2.0, 1.0, 0.0], [0.0, 1000.0, 0.0]], np.float32)
LABELS = np.array([0, 1])
NUMBERS = np.array([[0.5], [3.0]], np.float32)
TOLD = np.array([[0.0], [1.0]], np.float32)


def test_cross_entropy_and_nll_take_scores_and_logarithms() -> None:
    first = np.log(np.exp([2.0, 1.0, 0.0]).sum()) - 2
    assert mean_loss("cross-entropy", SCORES, LABELS) == pytest.approx(first / 2)
    logs = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    assert mean_loss("nll", logs, LABELS) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ("mse", (0.25 + 4) / 2),
        ("mae", (0.5 + 2) / 2),
        ("huber", (0.125 + 1.5) / 2),
        ("bce-with-logits", (np.log1p(np.exp(0.5)) + np.log1p(np.exp(-3))) / 2),
    ],
)
def test_losses_of_numbers_are_means_over_all_elements(loss: Loss, wanted: float) -> None:
    assert mean_loss(loss, NUMBERS, TOLD) == pytest.approx(wanted)
    twice = (np.tile(NUMBERS, 2), np.tile(TOLD, 2))
    assert mean_loss(loss, *twice) == pytest.approx(wanted)


def test_large_logits_do_not_overflow() -> None:
    large = np.array([[1000.0], [-1000.0]], np.float32)
    assert mean_loss("bce-with-logits", large, TOLD) == pytest.approx(1000)


def test_people_read_accuracy_of_classes_and_rmse_of_numbers() -> None:
    assert figures("cross-entropy", SCORES, np.array([0, 2])) == {"accuracy": 0.5}
    assert figures("bce-with-logits", NUMBERS, TOLD) == {"accuracy": 0.5}
    assert figures("mae", NUMBERS, TOLD) == {"rmse": pytest.approx(np.sqrt((0.25 + 4) / 2))}


def test_every_loss_is_the_one_that_the_step_computes() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")
    import onnx_bundles

    from schemas.onnx_file import with_parameters
    from schemas.params import unflatten

    rng = np.random.default_rng(0)
    for bundle in (onnx_bundles.softmax_bundle(), onnx_bundles.line_bundle(4)):
        manifest = bundle.manifest
        theta = rng.normal(size=manifest.params.size).astype(np.float32)
        x = rng.normal(size=(9, 4)).astype(np.float32)
        label = np.arange(9) % 3 if manifest.loss == "cross-entropy" else x[:, :1]
        feeds = {"x": x, "label": label, "theta": theta}
        (loss,) = onnxruntime.InferenceSession(bundle.step).run(["loss"], feeds)
        filled = with_parameters(bundle.infer, unflatten(manifest.params, theta))
        (answers,) = onnxruntime.InferenceSession(filled).run(None, {"x": x})
        assert mean_loss(manifest.loss, answers, label) == pytest.approx(float(loss), rel=1e-5)
