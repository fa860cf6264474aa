import hashlib
import struct

import msgspec
import numpy as np
import pytest

from schemas.params import (
    MAX_PARAMS,
    ParamSpec,
    TensorSpec,
    base_digest,
    flatten,
    model_digest,
    spec_of,
    unflatten,
)

SPEC = ParamSpec((TensorSpec("w", (2, 3)), TensorSpec("b", (3,)), TensorSpec("t")))
PARTS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([6, 7, 8], dtype=np.float32),
    "t": np.float32(9).reshape(()),
}


def test_flatten_lays_tensors_out_in_the_specs_order_not_the_mappings():
    backwards = dict(reversed(PARTS.items()))
    assert flatten(SPEC, backwards).tolist() == list(range(10))


def test_unflatten_gives_views_shaped_as_the_spec_says():
    flat = np.arange(10, dtype=np.float32)
    parts = unflatten(SPEC, flat)
    assert list(parts) == ["w", "b", "t"]
    assert [p.shape for p in parts.values()] == [(2, 3), (3,), ()]
    parts["b"][0] = 60
    assert flat[6] == 60
    assert flatten(SPEC, parts).tobytes() == flat.tobytes()


def test_other_types_become_float32():
    flat = flatten(SPEC, {name: part.astype(np.float64) for name, part in PARTS.items()})
    assert flat.dtype == np.float32
    assert flat.flags.c_contiguous


def test_spec_of_describes_what_flatten_accepts():
    assert spec_of(PARTS) == SPEC
    assert SPEC.size == 10


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"w": PARTS["w"], "b": PARTS["b"]}, "'t' is missing"),
        (PARTS | {"x": PARTS["t"]}, "unknown tensor 'x'"),
        (PARTS | {"w": PARTS["w"].T}, r"shape \(3, 2\), the task says \(2, 3\)"),
        (PARTS | {"t": np.zeros(1)}, r"shape \(1,\), the task says \(\)"),
    ],
)
def test_flatten_says_which_tensor_does_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        flatten(SPEC, parts)


@pytest.mark.parametrize("shape", [(9,), (11,), (10, 1), ()])
def test_unflatten_refuses_a_vector_of_another_shape(shape):
    with pytest.raises(ValueError, match="does not fit a spec of 10"):
        unflatten(SPEC, np.zeros(shape, dtype=np.float32))


def test_two_tensors_may_not_share_a_name():
    with pytest.raises(ValueError, match="same name"):
        ParamSpec((TensorSpec("a"), TensorSpec("a", (2,))))


def test_a_spec_holds_at_most_max_params():
    half = MAX_PARAMS // 2
    assert ParamSpec((TensorSpec("a", (half,)), TensorSpec("b", (half,)))).size == MAX_PARAMS
    with pytest.raises(ValueError, match="more than"):
        ParamSpec((TensorSpec("a", (half,)), TensorSpec("b", (half,)), TensorSpec("c")))


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "a", "shape": [0]},
        {"name": "a", "shape": [-1]},
        {"name": "a", "shape": [MAX_PARAMS + 1]},
        {"name": "a", "shape": [1] * 9},
        {"name": ""},
        {"name": "a" * 129},
        {"name": "a", "dtype": "float16"},
    ],
)
def test_a_tensor_out_of_bounds_is_refused(tensor):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"tensors": [tensor]}, ParamSpec)


def test_the_spec_digest_is_what_docs_wire_md_says():
    assert SPEC.digest == hashlib.sha256(b"w\x002,3\nb\x003\nt\x00\n").digest()
    assert SPEC.short_digest == int.from_bytes(SPEC.digest[:2], "big")


def test_the_spec_digest_tells_name_shape_and_order_apart():
    a, b = TensorSpec("a", (2, 3)), TensorSpec("b", (6,))
    others = [
        ParamSpec((a, b)),
        ParamSpec((b, a)),
        ParamSpec((TensorSpec("a", (3, 2)), b)),
        ParamSpec((TensorSpec("c", (2, 3)), b)),
        ParamSpec((a,)),
    ]
    assert len({spec.digest for spec in others}) == len(others)


def test_the_model_digest_covers_the_spec_and_every_bit_of_the_parameters():
    params = np.array([1.0, -0.0, 3.5], dtype=np.float32)
    digest = model_digest(b"s" * 32, params)
    assert digest == hashlib.sha256(b"s" * 32 + struct.pack("<3f", 1.0, -0.0, 3.5)).digest()
    assert base_digest(digest) == int.from_bytes(digest[:4], "big")
    assert digest != model_digest(b"t" * 32, params)
    assert digest != model_digest(b"s" * 32, params + np.float32(0))  # -0.0 became 0.0


def test_the_model_digest_does_not_depend_on_how_the_vector_lies_in_memory():
    params = np.arange(6, dtype=np.float32)
    assert model_digest(b"", params.astype(">f4")) == model_digest(b"", params)
    assert model_digest(b"", np.repeat(params, 2)[::2]) == model_digest(b"", params)
