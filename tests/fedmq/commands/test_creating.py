"""`fedmq task create --bundle`: what every device would refuse is refused here, before Redis."""

from collections.abc import Callable
from pathlib import Path

import onnx_bundles
import pytest
from numpy import zeros

from fedmq import cli
from fedmq.bundle_folder import write_folder

Refused = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What is said of a task file, with a bundle that takes four numbers."""
    bundle = onnx_bundles.softmax_bundle()
    tensors = bundle.manifest.params.tensors
    write_folder(tmp_path / "b", bundle, {t.name: zeros(t.shape, "f4") for t in tensors})

    def run(text: str) -> str:
        (tmp_path / "task.toml").write_text(text)
        nowhere = ["--redis-url", "redis://127.0.0.1:1/0"]
        files = ["--bundle", str(tmp_path / "b"), "--spec", str(tmp_path / "task.toml")]
        with pytest.raises(SystemExit) as ended:
            cli.main(["task", "create", "pumps", *files, *nowhere])
        assert ended.value.code in {1, 2}
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[train.options]\noptimizer = "adamw"', "fedmq: train.options.optimizer: is 'adamw'"),
        ('[train.options]\noptimiser = "adam"', "fedmq: train.options.optimiser: is unknown"),
        ('[input]\nfeatures = ["a", "b"]', "input.features: are 2, in windows of 1: 2 numbers"),
        (
            '[input]\nfeatures = ["a", "b"]\nwindow = 3',
            "6 numbers a sample, but the model takes 4",
        ),
        ('[input]\nfeatures = ["a", "fault"]\nlabel = "fault"', "names the label 'fault'"),
        ("[input]\nnormalise = 'devices'", "input.normalise"),
    ],
)
def test_what_no_device_could_train_is_refused_at_once(refused, text: str, said: str) -> None:
    assert said in refused(text)


def test_columns_without_names_are_told_of_and_no_more(refused) -> None:
    said = refused("[train]\nepochs = 1\n")
    assert "note: [input] features names no columns" in said
    assert "127.0.0.1:1" in said, "it went on to Redis"
