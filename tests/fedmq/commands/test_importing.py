from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.onnx.session import session_of
from examples.pump_faults.make_model import model as pump
from fedmq import cli
from fedmq.bundle_folder import read_folder
from schemas.onnx_file import with_parameters

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """What a command says on stderr that ends with 2."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["model", "import", *arguments])
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pump.onnx"
    onnx.save(pump(), path)
    return path


def imported(file: Path, out: Path, *more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["model", "import", str(file), "--out", str(out), *more])
    assert ended.value.code == 0


def test_a_bundle_holds_the_model_that_was_given(file, tmp_path, capsys) -> None:
    imported(file, tmp_path / "bundle")
    bundle, theta0 = read_folder(tmp_path / "bundle")
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    given, found = (
        session_of(data, what="it").run(None, {"x": x})[0]
        for data in (file.read_bytes(), with_parameters(bundle.infer, theta0))
    )
    np.testing.assert_allclose(found, given, rtol=1e-6)
    told = capsys.readouterr().out
    assert "4 tensors, 50 of 50 parameters trained; x 3 float32" in told
    assert f"fedmq task create NAME --bundle {tmp_path / 'bundle'}" in told


def test_what_is_frozen_is_told_and_kept(file, tmp_path, capsys) -> None:
    imported(file, tmp_path / "bundle", "--freeze", "hidden.weight", "--freeze", "hidden.bias")
    assert "18 of 50 parameters trained" in capsys.readouterr().out
    bundle, _ = read_folder(tmp_path / "bundle")
    kinds = {tensor.name: tensor.kind for tensor in bundle.manifest.params.tensors}
    assert kinds["hidden.weight"] == kinds["hidden.bias"] == "frozen"
    assert kinds["head.weight"] == "trained"


def test_one_seed_writes_one_bundle(file, tmp_path) -> None:
    for name in ("a", "b"):
        imported(file, tmp_path / name)
    one, other = (read_folder(tmp_path / name)[0] for name in ("a", "b"))
    assert one.digest == other.digest


def test_an_operator_without_a_rule_is_refused_by_name_and_nothing_is_written(
    tmp_path, refused
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("CumSum", ["h", "axis"], ["y"], name="odd"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    weights = [
        numpy_helper.from_array(np.ones((3, 2), np.float32), "w"),
        numpy_helper.from_array(np.array(1, np.int64), "axis"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "odd.onnx")
    said = refused(str(tmp_path / "odd.onnx"), "--out", str(tmp_path / "bundle"))
    assert "CumSum" in said
    assert "odd" in said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "model: give an .onnx file, or --torch module:factory"),
        (["a.onnx", "--torch", "m:f"], "one of the two"),
        (["nowhere.onnx"], "nowhere.onnx cannot be read"),
        (["nowhere.onnx", "--loss", "hinge"], "loss: 'hinge' is none: choose cross-entropy, nll"),
        (["nowhere.onnx", "--shape", "3,x"], "shape: '3,x' must be whole numbers above 0"),
        (["--torch", "nowhere:make"], "torch: 'nowhere:make' cannot be imported"),
        (["--torch", "math:pi"], "must return (module, example batch)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(arguments, said, refused) -> None:
    assert said in refused(*arguments)


def test_what_is_no_model_is_refused(tmp_path, refused) -> None:
    (tmp_path / "text.onnx").write_text("hello, I am no protobuf at all")
    assert "text.onnx is no ONNX model" in refused(str(tmp_path / "text.onnx"))
