from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.trainers.data import examples_of, load_examples

X, Y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1])


def test_a_file_holds_x_and_y(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npz")
    np.savez_compressed(file, x=X, y=Y)
    examples = load_examples(file)
    assert np.array_equal(examples.features, X)
    assert np.array_equal(examples.labels, Y)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match=r"mine\.npz: No such file.*check the path"):
        load_examples(file)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PK\x03\x04 cut short"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.npz: not an \.npz .*numpy\.savez"):
        load_examples(str(file))


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npy")
    np.save(file, X)
    with pytest.raises(ValueError, match=r"mine\.npy: not an \.npz"):
        load_examples(file)


def test_damaged_bytes_are_named_wherever_they_lie(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez_compressed(file, x=np.arange(50.0).reshape(25, 2), y=np.zeros(25))
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=r"mine\.npz: "):
            load_examples(str(file))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npz")
    np.savez(file, x=X, labels=Y)
    with pytest.raises(ValueError, match=r"mine\.npz: has no array 'y'; .*numpy\.savez"):
        load_examples(file)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npz")
    objects: Any = np.array([{"any": "thing"}], dtype=object)
    np.savez(file, x=objects, y=Y)
    with pytest.raises(ValueError, match=r"mine\.npz: not an \.npz of plain arrays"):
        load_examples(file)


def test_bad_examples_in_a_file_name_the_file(tmp_path: Path) -> None:
    file = str(tmp_path / "mine.npz")
    np.savez(file, x=X, y=np.array([0]))
    with pytest.raises(ValueError, match=r"mine\.npz: 2 rows of features but 1 labels"):
        load_examples(file)


@pytest.mark.parametrize(
    ("features", "labels", "data"),
    [(None, None, ""), (X, None, ""), (None, Y, ""), (X, Y, "mine.npz"), (X, None, "mine.npz")],
)
def test_arrays_or_a_file_but_not_both_nor_neither(features: Any, labels: Any, data: str) -> None:
    with pytest.raises(ValueError, match="give features and labels, or data="):
        examples_of(features, labels, data)
