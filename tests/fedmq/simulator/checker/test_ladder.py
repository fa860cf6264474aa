"""What is retained of a lattice is read without the product's code, and held against the log."""

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

import aggregator.walking
from fedmq.simulator.checker import fold, look
from fedmq.simulator.checker.ladder import Where, apply, read_diff, read_keyframe
from fedmq.simulator.checker.lattice import Lattice
from fedmq.simulator.checker.message import Refused
from fedmq.simulator.checker.orders import read_orders
from schemas.errors import WireError
from schemas.lattice import (
    decode_diff,
    decode_keyframe,
    diff_of,
    encode_diff,
    encode_keyframe,
    finer,
    first_exponents,
    placed,
    walked,
)
from schemas.outcomes import outcome_name
from schemas.params import ParamSpec, TensorSpec
from schemas.seal import EVERYBODY, sealed_array
from schemas.task import PublishOptions, spec_to_json
from tests.aggregator.world import EPOCH, make_spec
from tests.fedmq.simulator.checker.logs import RandomLog

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "lattice.json").read_text())


def dense(case):
    q = [0] * sum(case["sizes"])
    for place, value in case["entries"]:
        q[place] = value
    return q


def named(case):
    return case["name"]


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["keyframe"], ids=named)
def test_the_recorded_keyframes_are_read_as_they_were_meant(case):
    found = read_keyframe(bytes.fromhex(case["hex"]), case["sizes"])
    assert found == Where(case["exponents"], dense(case))


@pytest.mark.parametrize("case", VECTORS["diff"], ids=named)
def test_the_recorded_diffs_are_read_as_they_were_meant(case):
    assert read_diff(bytes.fromhex(case["hex"]), case["sizes"]) == (case["shifts"], dense(case))


@pytest.mark.parametrize("case", VECTORS["walk"], ids=named)
def test_every_recorded_way_ends_at_the_same_bits(case):
    sizes = case["sizes"]
    here = first = read_keyframe(bytes.fromhex(case["first"]), sizes)
    for diff in case["diffs"]:
        here = apply(read_diff(bytes.fromhex(diff), sizes), here, sizes)
    assert here == apply(read_diff(bytes.fromhex(case["merged"]), sizes), first, sizes)
    assert here == read_keyframe(bytes.fromhex(case["last"]), sizes)
    origin = np.frombuffer(bytes.fromhex(case["origin"]), "<f4")
    lattice = Lattice(origin, tuple(sizes), tuple(here.exponents))
    lattice.q = np.array(here.q)
    assert lattice.params.tobytes().hex() == case["values"]


@pytest.mark.parametrize("case", VECTORS["bad"], ids=named)
def test_the_recorded_bad_bytes_are_refused_by_their_names(case):
    read = read_keyframe if case["kind"] == "keyframe" else read_diff
    with pytest.raises(Refused, match=case["reason"].lower()):
        read(bytes.fromhex(case["hex"]), case["sizes"])


def ours(read, data, sizes):
    try:
        first, numbers = read(data, sizes)
    except Refused as refused:
        return refused.name
    return first, numbers


def their_keyframe(data, sizes):
    try:
        q, exponents = decode_keyframe(data, sizes)
    except WireError as exc:
        return outcome_name(exc.reason)
    return list(exponents), q.tolist()


def their_diff(data, sizes):
    try:
        diff = decode_diff(data, sizes)
    except WireError as exc:
        return outcome_name(exc.reason)
    d = np.zeros(sum(sizes), np.int64)
    d[diff.indices] = diff.values
    return list(diff.shifts), d.tolist()


@LEAN
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    scale=st.sampled_from([1, 3, 1000, 2**23]),
    bit=st.integers(0, 10_000),
)
def test_keyframes_and_diffs_are_read_as_the_product_reads_them(seed, sizes, density, scale, bit):
    rng, total = generator(seed), sum(sizes)
    points = [
        (rng.integers(-scale, scale + 1, total) * (rng.random(total) < density)).astype(np.int32)
        for _ in range(2)
    ]
    before = tuple(rng.integers(-16, 20, len(sizes)).tolist())
    after = tuple(m + int(rng.integers(0, 5)) * (scale < 9) for m in before)
    keyframes = [encode_keyframe(q, m, sizes) for q, m in zip(points, (before, after), strict=True)]
    diff = encode_diff(diff_of(points[0], before, points[1], after, sizes), sizes)
    first, last = (read_keyframe(data, sizes) for data in keyframes)
    assert first == (list(before), points[0].tolist())
    assert apply(read_diff(diff, sizes), first, sizes) == last == (list(after), points[1].tolist())
    for read, theirs, data in (
        (read_keyframe, their_keyframe, keyframes[1]),
        (read_diff, their_diff, diff),
    ):
        altered = bytearray(data)
        altered[bit // 8 % len(data)] ^= 128 >> bit % 8
        for bad in (bytes(altered), data[: bit % len(data)], data + b"\0"):
            known, found = theirs(bad, sizes), ours(read, bad, sizes)
            # two things may be wrong at once: then each may name the other
            assert (found == known) or (isinstance(found, str) and isinstance(known, str))


# -- walking -----------------------------------------------------------------------------------


@LEAN
@given(
    seed=st.integers(0, 2**32),
    m=st.tuples(st.integers(-16, 24), st.integers(-16, 24)),
    more=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    far=st.sampled_from([1.0, 1.0, 300.0, 1e9, 5e37]),
)
def test_it_walks_as_the_product_does(seed, m, more, far):
    rng, sizes = generator(seed), (5, 3)
    origin = rng.standard_normal(8).astype(np.float32)
    params = (rng.standard_normal(8) * far).astype(np.float32)
    params[rng.integers(8)] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1.0])
    after = tuple(min(24, a + b) for a, b in zip(m, more, strict=True))
    q = rng.choice([0, 1, -7, 2**23, -(2**24) + 1], 8).astype(np.int32)
    lattice = Lattice(origin, sizes, m)
    lattice.q = q.astype(np.int64)
    lattice.walk(params, after)
    theirs = walked(params, origin, finer(q, m, after, sizes), after, sizes)
    assert lattice.exponents == after
    assert lattice.q.tolist() == theirs.tolist()
    assert lattice.params.tobytes() == placed(origin, theirs, after, sizes).tobytes()


SHAPES = st.lists(st.lists(st.integers(1, 300), max_size=3).map(tuple), min_size=1, max_size=4)


@LEAN
@given(shapes=SHAPES, step=st.sampled_from([0.0, 0.0, 2.0**-24, 0.5, 2.0**16]))
def test_steps_are_those_of_the_product(shapes, step):
    tensors = ParamSpec(tuple(TensorSpec(f"t{n}", shape) for n, shape in enumerate(shapes)))
    spec = make_spec(params=tensors, publish=PublishOptions(lattice=True, step=step))
    assert read_orders(spec_to_json(spec)).exponents == first_exponents(tensors, step)


# -- what a server must not do -----------------------------------------------------------------


@pytest.fixture(scope="module")
def walked_far():
    """Seventy publications of a task, what is kept of them, and what the log says."""
    publish = PublishOptions(lattice=True, step=2.0**-6, keep=8)
    spec = make_spec(codec="sq", publish=publish, max_staleness=1000)
    recorder = RandomLog(3, 400, checksum=False, spec=spec).recorder
    account = fold(EPOCH, recorder.origin, recorder.raw)
    assert account.points[-1].serial > 70
    return recorder, account


def found(walked_far, changed=None, manifest=None):
    recorder, account = walked_far
    told = recorder.manifest if manifest is None else manifest
    blobs = {**recorder.blobs, **(changed or {})}
    return look(account, told, {k: v for k, v in blobs.items() if v is not None})


def test_what_an_honest_server_retains_is_right(walked_far):
    honest = found(walked_far)
    assert honest.mismatches == []
    assert honest.checked > 100
    names = {name[0] + name.rsplit("-", 1)[1] for name in walked_far[0].blobs if name[0] == "d"}
    assert names == {f"d{level}" for level in range(6)}  # one of level 6 is soon too old


def test_a_manifest_may_be_sealed(walked_far):
    sealed = sealed_array(walked_far[0].manifest, EVERYBODY)
    assert found(walked_far, manifest=sealed).mismatches == []
    assert found(walked_far, manifest=sealed[:-1] + bytes([sealed[-1] ^ 1])).mismatches


def test_any_blob_that_is_missing_altered_or_of_somewhere_else_is_found(walked_far):
    recorder, account = walked_far
    newest = f"k{EPOCH}-{account.points[-1].version}"
    diffs = [name for name in recorder.blobs if name[0] == "d"]
    for name in (newest, diffs[0], diffs[len(diffs) // 2], diffs[-1]):
        (said, *_) = found(walked_far, {name: None}).mismatches[-1:]
        assert said == f"blob {name} is missing"
        cut = recorder.blobs[name][:-1]
        assert f"blob {name} cannot be read" in found(walked_far, {name: cut}).mismatches[-1]
    first, other = diffs[0], diffs[-1]
    swapped = found(walked_far, {first: recorder.blobs[other]}).mismatches
    assert any(f"blob {first} does not" in said for said in swapped)
    keyframes = [name for name in recorder.blobs if name[0] == "k"]
    old = found(walked_far, {newest: recorder.blobs[keyframes[0]]}).mismatches
    assert any(said.startswith(f"blob {newest} is not version") for said in old)


def test_an_origin_that_is_another_is_found(walked_far):
    recorder, _ = walked_far
    (name,) = (name for name in recorder.blobs if name[0] == "o")
    wrong = [f"blob {name} is not the model that the lattice begins at"]
    assert found(walked_far, {name: recorder.blobs[name][::-1]}).mismatches == wrong


@pytest.mark.parametrize("place", [0, 1, 2, 3, 5, 6, 7, 8, 10, 11])
def test_a_manifest_that_tells_something_else_is_found(walked_far, place):
    said = msgpack.unpackb(walked_far[0].manifest)
    other = {3: bytes(8), 10: "0" * 8, 11: [said[11][0] + 1, *said[11][1:]]}
    said[place] = other[place] if place in other else said[place] + 1
    assert found(walked_far, manifest=msgpack.packb(said)).mismatches


@pytest.mark.parametrize("manifest", [b"", b"\x9a\x01", b"\xc1", bytes([0x9C, *[0] * 12])])
def test_what_is_no_short_manifest_is_found(walked_far, manifest):
    wrong = ["the newest manifest does not have the short form"]
    assert found(walked_far, manifest=manifest).mismatches == wrong


def off_by_one(params, origin, q, exponents, sizes):
    there = walked(params, origin, q, exponents, sizes)
    there[0] += 1
    return there


def not_in_the_diff(old_q, old, new_q, new, sizes):
    return diff_of(new_q, old, new_q, new, sizes)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("walked", off_by_one, "model_digest of the newest manifest"),
        ("diff_of", not_in_the_diff, "does not lead from publication"),
    ],
)
def test_a_server_that_walks_another_way_than_it_says_is_found(monkeypatch, name, wrong, said):
    monkeypatch.setattr(aggregator.walking, name, wrong)
    spec = make_spec(publish=PublishOptions(lattice=True, step=0.25))
    recorder = RandomLog(3, 40, checksum=False, spec=spec).recorder
    account = fold(EPOCH, recorder.origin, recorder.raw)
    assert any(said in told for told in look(account, recorder.manifest, recorder.blobs).mismatches)
