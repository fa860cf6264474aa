from math import sqrt

import numpy as np
import pytest

from schemas.initial import glorot, initial_params, mlp_shapes
from schemas.params import ParamSpec, TensorSpec, unflatten
from schemas.task import InitOptions

SPEC = ParamSpec(tuple(TensorSpec(name, shape) for name, shape in mlp_shapes(64, [32], 10).items()))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_shapes_chain_from_features_through_hidden_layers_to_classes() -> None:
    assert mlp_shapes(4, [3, 2], 5) == {
        "W1": (4, 3),
        "b1": (3,),
        "W2": (3, 2),
        "b2": (2,),
        "W3": (2, 5),
        "b3": (5,),
    }


def test_without_hidden_layers_there_is_one_pair() -> None:
    assert mlp_shapes(4, (), 2) == {"W1": (4, 2), "b1": (2,)}


def test_glorot_fills_matrices_and_leaves_vectors_at_zero() -> None:
    parts = unflatten(SPEC, glorot(SPEC, generator()))
    assert not parts["b1"].any()
    assert not parts["b2"].any()
    assert len(np.unique(parts["W1"])) > 1000


@pytest.mark.parametrize(("name", "fans"), [("W1", 64 + 32), ("W2", 32 + 10)])
def test_glorot_is_uniform_within_its_limit(name: str, fans: int) -> None:
    part = unflatten(SPEC, glorot(SPEC, generator()))[name]
    limit = sqrt(6 / fans)
    assert 0.95 * limit < np.abs(part).max() <= limit * (1 + 1e-6)
    assert abs(part.mean()) < 0.1 * limit
    assert part.std() == pytest.approx(limit / sqrt(3), rel=0.1)


def test_a_kernel_counts_its_receptive_field_in_both_fans() -> None:
    spec = ParamSpec((TensorSpec("kernel", (8, 4, 3, 3)),))
    limit = sqrt(6 / ((8 + 4) * 9))
    assert 0.9 * limit < np.abs(glorot(spec, generator())).max() <= limit * (1 + 1e-6)


def test_scalars_stay_at_zero_and_draw_nothing() -> None:
    alone = ParamSpec((TensorSpec("w", (2, 2)),))
    after_a_scalar = ParamSpec((TensorSpec("temperature", ()), TensorSpec("w", (2, 2))))
    flat = glorot(after_a_scalar, generator())
    assert flat[0] == 0
    assert np.array_equal(flat[1:], glorot(alone, generator()))


def test_kind_zeros_is_all_zeros() -> None:
    flat = initial_params(SPEC, InitOptions(kind="zeros"), generator())
    assert flat.shape == (SPEC.size,)
    assert flat.dtype == np.float32
    assert not flat.any()


def test_kind_glorot_is_glorot() -> None:
    flat = initial_params(SPEC, InitOptions(), generator())
    assert flat.dtype == np.float32
    assert np.array_equal(flat, glorot(SPEC, generator()))


def test_another_seed_draws_another_model() -> None:
    assert not np.array_equal(glorot(SPEC, generator(0)), glorot(SPEC, generator(1)))


def test_one_seed_gives_these_bits_everywhere() -> None:
    spec = ParamSpec((TensorSpec("w", (1, 2)),))
    golden = bytes.fromhex("0ae17d3f7457c63e")
    assert glorot(spec, generator()).astype("<f4").tobytes() == golden
