"""What a trainer is given and what is made of its answer, by the kinds of the tensors."""

import numpy as np
import pytest

from edge_agent.local_model import answered, local_bytes, read_only, with_local
from schemas.params import ParamSpec, TensorSpec

SPEC = ParamSpec(
    (
        TensorSpec("w", (2,)),
        TensorSpec("stem", (2,), "frozen"),
        TensorSpec("head", (3,), "local"),
    )
)
GLOBAL = np.arange(7, dtype=np.float32)
MINE = np.array([7, 8, 9], "<f4")


def test_this_devices_own_tensors_take_the_place_of_the_tasks() -> None:
    found = with_local(SPEC, GLOBAL, {"head": MINE.tobytes()})
    assert found.tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert GLOBAL.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "kept",
    [{}, {"head": b""}, {"head": bytes(8)}, {"head": bytes(16)}, {"w": bytes(8)}, {"x": bytes(4)}],
    ids=str,
)
def test_what_was_kept_for_other_tensors_is_left_alone(kept: dict[str, bytes]) -> None:
    assert with_local(SPEC, GLOBAL, kept).tolist() == GLOBAL.tolist()


def test_only_local_tensors_are_kept() -> None:
    assert local_bytes(SPEC, GLOBAL) == {"head": np.array([4, 5, 6], "<f4").tobytes()}


def test_frozen_tensors_are_the_bases_whatever_the_trainer_answers() -> None:
    answer = {"w": np.ones(2), "stem": np.full(2, 99.0), "head": np.zeros(3, np.int32)}
    found = answered(SPEC, GLOBAL, answer)
    assert found.dtype == np.float32
    assert found.tolist() == [1, 1, 2, 3, 0, 0, 0]


def test_a_trainer_cannot_write_into_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="read-only"):
        read_only(SPEC, GLOBAL.copy())["w"][0] = 1
