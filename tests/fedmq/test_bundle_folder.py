"""A bundle as a folder: what is written is read, and what is wrong is named."""

import bundling
import numpy as np
import pytest

from fedmq.bundle_folder import packed, read_folder, write_folder
from schemas.bundle import read_bundle
from schemas.errors import ConfigError
from schemas.params import ParamSpec, TensorSpec

PARAMS = ParamSpec(
    (TensorSpec("layer/file:0", (2, 3)), TensorSpec("m", (3,), "buffer"), TensorSpec("s"))
)
PACKED = bundling.packed(PARAMS)
BUNDLE = read_bundle(PACKED)
THETA0 = {
    "s": np.float32(7).reshape(()),
    "m": np.ones(3, np.float32),
    "layer/file:0": np.arange(6, dtype=np.float32).reshape(2, 3),
}


def test_what_is_written_is_read_in_the_manifests_order(tmp_path):
    write_folder(tmp_path / "new" / "bundle", BUNDLE, THETA0)
    bundle, theta0 = read_folder(tmp_path / "new" / "bundle")
    assert bundle == BUNDLE
    assert packed(bundle) == PACKED
    assert list(theta0) == ["layer/file:0", "m", "s"]
    for name, array in THETA0.items():
        assert theta0[name].dtype == np.float32
        np.testing.assert_array_equal(theta0[name], array)


def test_the_initial_model_is_an_ordinary_npz_and_the_same_bytes_every_time(tmp_path):
    write_folder(tmp_path / "a", BUNDLE, THETA0)
    write_folder(tmp_path / "b", BUNDLE, THETA0)
    names = sorted(each.name for each in (tmp_path / "a").iterdir())
    assert names == ["infer.onnx", "manifest.json", "step.onnx", "theta0.npz"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with np.load(tmp_path / "a" / "theta0.npz") as archive:
        np.testing.assert_array_equal(archive["m"], THETA0["m"])


def test_a_folder_may_be_written_again(tmp_path):
    write_folder(tmp_path, BUNDLE, THETA0)
    other = {name: array + np.float32(1) for name, array in THETA0.items()}
    write_folder(tmp_path, BUNDLE, other)
    _, theta0 = read_folder(tmp_path)
    np.testing.assert_array_equal(theta0["m"], other["m"])


def test_a_model_that_is_not_the_bundles_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"theta0\.npz does not fit manifest\.json: .*missing"):
        write_folder(tmp_path, BUNDLE, {"m": THETA0["m"]})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_nothing_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written"):
        write_folder(tmp_path / "file", BUNDLE, THETA0)


def break_manifest(folder):
    (folder / "manifest.json").write_text("{}")


def break_graph(folder):
    (folder / "infer.onnx").write_bytes(bundling.STEP)


def break_model(folder):
    np.savez(folder / "theta0.npz", m=np.ones(3, np.float32))


def break_npz(folder):
    (folder / "theta0.npz").write_bytes(b"PK\x03\x04 no zip")


def encrypt_npz(folder):
    """Zip's own mark of it, in every local and central header."""
    data = bytearray((folder / "theta0.npz").read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + flags] |= 1
    (folder / "theta0.npz").write_bytes(data)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (break_manifest, "manifest.json is no manifest"),
        (break_graph, "infer.onnx is not the file that the manifest tells of"),
        (break_model, "theta0.npz does not fit manifest.json"),
        (break_npz, "theta0.npz is not an .npz of plain arrays"),
        (encrypt_npz, "theta0.npz is not an .npz of plain arrays"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, act, why):
    write_folder(tmp_path, BUNDLE, THETA0)
    act(tmp_path)
    with pytest.raises(ConfigError, match=why.replace(".", r"\.")):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "step.onnx", "infer.onnx", "theta0.npz"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    write_folder(tmp_path, BUNDLE, THETA0)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} cannot be read".replace(".", r"\.")):
        read_folder(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    write_folder(tmp_path, BUNDLE, THETA0)
    with (tmp_path / "manifest.json").open("ab") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ConfigError, match=r"manifest\.json is larger than 1048576 bytes"):
        read_folder(tmp_path)
