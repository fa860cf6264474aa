"""The vectors of tests/vectors, in both directions. They are data: no test writes them.

They were made by a writer that shares no code with fedmq, and belong to docs/wire.md: a client in
any language is right when it passes them.
"""

import json
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import generator, open_update

from schemas import lattice
from schemas.codecs import CODECS, Ask, CodecOptions, codec_by_name, seeded
from schemas.delta import to_dense
from schemas.errors import WireError
from schemas.ladder import path
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import shard_of
from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec, base_digest, model_digest
from schemas.topics import DEFAULT_PREFIX, TaskTopics
from schemas.window import is_settled
from schemas.wire import (
    decode_manifest,
    decode_receipt,
    decode_update,
    encode_manifest,
    encode_receipt,
    encode_update,
)

VECTORS = Path(__file__).parents[1] / "vectors"
DIGESTS = ("model_digest", "spec_digest", "blob_digest")


def vectors(*files: str, part: str = "") -> pytest.MarkDecorator:
    every = [json.loads((VECTORS / file).read_text(encoding="utf-8")) for file in files]
    items = [item for each in every for item in (each[part] if part else each)]
    names = [item.get("name", item.get("device")) for item in items]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("vector", items, ids=names)


def _fields(vector: dict[str, Any], *others: str) -> dict[str, Any]:
    return {key: value for key, value in vector.items() if key not in {"name", "hex", *others}}


@vectors("update.json", "update_short.json")
def test_update(vector):
    fields = _fields(vector)
    update = ModelUpdate(**fields | {"payload": bytes.fromhex(fields["payload"])})
    data = bytes.fromhex(vector["hex"])
    assert encode_update(update) == data
    assert decode_update(data) == update


@vectors("bad_update.json")
def test_bad_update(vector):
    with pytest.raises(WireError) as caught:
        open_update(bytes.fromhex(vector["hex"]), vector["size"])
    assert caught.value.reason is Reason[vector["reason"]]


@vectors("manifest.json")
def test_manifest(vector):
    fields = _fields(vector, "chunks")
    manifest = Manifest(**fields | {name: bytes.fromhex(fields[name]) for name in DIGESTS})
    data = bytes.fromhex(vector["hex"])
    assert encode_manifest(manifest) == data
    assert decode_manifest(data) == manifest
    assert manifest.chunks == vector["chunks"]


@vectors("manifest_short.json")
def test_manifest_short(vector):
    fields = _fields(vector, "chunks")
    digests = {name: bytes.fromhex(fields[name]) for name in ("model_digest", "spec_digest")}
    ladder = tuple(fields["ladder"])
    manifest = Manifest(**fields | digests | {"ladder": ladder, "blob_digest": b""})
    data = bytes.fromhex(vector["hex"])
    assert encode_manifest(manifest) == data
    assert decode_manifest(data) == manifest
    assert manifest.chunks == vector["chunks"]


@vectors("receipt.json")
def test_receipt(vector):
    fields = _fields(vector, "settled_seqs", "open_seqs")
    receipt = Receipt(**fields | {"settled": int(fields["settled"], 16)})
    data = bytes.fromhex(vector["hex"])
    assert encode_receipt(receipt) == data
    assert decode_receipt(data) == receipt
    assert all(is_settled(seq, receipt.low, receipt.settled) for seq in vector["settled_seqs"])
    assert not any(is_settled(seq, receipt.low, receipt.settled) for seq in vector["open_seqs"])


@vectors("codec_float32.json")
def test_codec_float32(vector):
    values, payload = np.array(vector["values"], dtype=np.float32), bytes.fromhex(vector["hex"])
    assert CODECS[0].encode(values, Ask(), generator()) == payload
    assert CODECS[0].decode(memoryview(payload), vector["size"]).values.tobytes() == payload


@vectors("codec_topk_int8.json")
def test_codec_topk_int8(vector):
    values, payload = np.zeros(vector["size"], dtype=np.float32), bytes.fromhex(vector["hex"])
    for index, value in vector["entries"]:
        values[index] = value
    assert (
        CODECS[1].encode(values, Ask(CodecOptions(density=vector["density"])), generator())
        == payload
    )
    delta = CODECS[1].decode(memoryview(payload), vector["size"])
    assert delta.indices.tolist() == vector["indices"]
    assert delta.values.tolist() == vector["values"]
    assert payload[0] == vector["width"]
    assert np.frombuffer(payload[1:5], "<f4")[0] == vector["scale"]
    assert np.count_nonzero(to_dense(delta, vector["size"])) <= len(vector["indices"])


@vectors("codec_sq.json")
def test_codec_sq(vector):
    """Only read: what is written is drawn."""
    delta = CODECS[2].decode(memoryview(bytes.fromhex(vector["hex"])), vector["size"])
    assert delta.indices.tolist() == vector["indices"]
    assert delta.values.tolist() == vector["values"]


@vectors("codec_stc.json")
def test_codec_stc(vector):
    values, payload = np.zeros(vector["size"], dtype=np.float32), bytes.fromhex(vector["hex"])
    for index, value in vector["entries"]:
        values[index] = value
    ask = Ask(CodecOptions(density=vector["density"]), budget=vector["budget"])
    assert CODECS[5].encode(values, ask, generator()) == payload
    delta = CODECS[5].decode(memoryview(payload), vector["size"])
    assert delta.indices.tolist() == vector["indices"]
    assert delta.values.tolist() == vector["values"]


def _codec_vectors(*names: str) -> pytest.MarkDecorator:
    read = [
        (name, json.loads((VECTORS / f"codec_{name}.json").read_text("utf-8"))) for name in names
    ]
    pairs = [(name, vector) for name, each in read for vector in each]
    ids = [f"{name}: {vector['name']}" for name, vector in pairs]
    return pytest.mark.parametrize(("name", "vector"), pairs, ids=ids)


@_codec_vectors("float16", "int8", "sign", "qsgd", "eden", "dropout")
def test_codec_decodes(name, vector):
    """Bit by bit, whether the vector lists all values, those at `indices` or `entries`."""
    payload, codec = bytes.fromhex(vector["hex"]), codec_by_name(name)
    delta = codec.decode(memoryview(payload), vector["size"])
    if "indices" in vector:
        assert delta.indices.tolist() == vector["indices"]
        assert delta.values.tolist() == vector["values"]
    elif "entries" in vector:
        assert [[i, x] for i, x in enumerate(delta.values.tolist()) if x] == vector["entries"]
    else:
        assert delta.values.tolist() == vector["values"]
    if "delta" in vector:
        given = np.array(vector["delta"], dtype=np.float32)
        assert codec.encode(given, Ask(), generator()) == payload


@vectors("seeded.json")
def test_seeded(vector):
    seed, lane, size = vector["seed"], vector["lane"], vector["size"]
    assert [f"{word:016x}" for word in seeded.words(seed, lane, 5).tolist()] == vector["words"]
    minus = seeded.minus_signs(seed, lane, len(vector["minus"]))
    assert "".join(str(int(one)) for one in minus) == vector["minus"]
    few, left_out = vector["few"], vector["left_out"]
    assert np.flatnonzero(seeded.subset(seed, lane, len(few), size)).tolist() == few
    many = seeded.subset(seed, lane, size - len(left_out), size)
    assert np.flatnonzero(~many).tolist() == left_out


@vectors("digests.json", part="spec")
def test_spec_digest(vector):
    spec = ParamSpec(tuple(TensorSpec(t["name"], tuple(t["shape"])) for t in vector["tensors"]))
    assert spec.digest.hex() == vector["digest"]
    assert spec.short_digest == vector["short_digest"]


@vectors("digests.json", part="model")
def test_model_digest(vector):
    params = np.array(vector["params"], dtype=np.float32)
    digest = model_digest(bytes.fromhex(vector["spec_digest"]), params)
    assert digest.hex() == vector["digest"]
    assert base_digest(digest) == vector["base_digest"]


@vectors("digests.json", part="shard")
def test_shard(vector):
    assert shard_of(vector["device"]) == vector["shard"]
    assert TaskTopics(DEFAULT_PREFIX, "digits").up(vector["device"]) == vector["topic"]


def _entries(indices, values) -> list[list[int]]:
    return [[int(i), int(v)] for i, v in zip(indices, values, strict=True)]


def _arrays(entries) -> tuple[np.ndarray, np.ndarray]:
    indices = np.array([i for i, _ in entries], dtype=np.int64)
    return indices, np.array([v for _, v in entries], dtype=np.int32)


@vectors("lattice.json", part="keyframe")
def test_keyframe(vector):
    sizes, exponents = tuple(vector["sizes"]), tuple(vector["exponents"])
    indices, values = _arrays(vector["entries"])
    q = np.zeros(sum(sizes), dtype=np.int32)
    q[indices] = values
    data = bytes.fromhex(vector["hex"])
    assert lattice.encode_keyframe(q, exponents, sizes) == data
    back, told = lattice.decode_keyframe(data, sizes)
    assert back.tobytes() == q.tobytes()
    assert told == exponents


@vectors("lattice.json", part="diff")
def test_diff(vector):
    sizes, shifts = tuple(vector["sizes"]), tuple(vector["shifts"])
    data = bytes.fromhex(vector["hex"])
    assert lattice.encode_diff(lattice.Diff(shifts, *_arrays(vector["entries"])), sizes) == data
    diff = lattice.decode_diff(data, sizes)
    assert diff.shifts == shifts
    assert _entries(diff.indices, diff.values) == vector["entries"]


@vectors("lattice.json", part="walk")
def test_walk(vector):
    """Along all diffs, along the merged one and by the last keyframe: the same float32 values."""
    sizes = tuple(vector["sizes"])
    first, last, merged = (bytes.fromhex(vector[name]) for name in ("first", "last", "merged"))
    diffs = [lattice.decode_diff(bytes.fromhex(each), sizes) for each in vector["diffs"]]
    start = lattice.decode_keyframe(first, sizes)
    there = start
    for diff in diffs:
        there = lattice.applied(*there, diff, sizes)
    whole = reduce(lambda one, two: lattice.merged(one, two, sizes), diffs)
    assert lattice.encode_diff(whole, sizes) == merged
    by_merged = lattice.applied(*start, lattice.decode_diff(merged, sizes), sizes)
    origin = np.frombuffer(bytes.fromhex(vector["origin"]), "<f4").astype(np.float32)
    for way in (there, by_merged, lattice.decode_keyframe(last, sizes)):
        assert lattice.encode_keyframe(*way, sizes) == last
        values = lattice.placed(origin, *way, sizes)
        assert values.astype("<f4").tobytes().hex() == vector["values"]


@vectors("lattice.json", part="path")
def test_path(vector):
    assert list(map(list, path(vector["first"], vector["last"]))) == vector["steps"]


@vectors("lattice.json", part="bad")
def test_bad_lattice(vector):
    decode = {"keyframe": lattice.decode_keyframe, "diff": lattice.decode_diff}[vector["kind"]]
    with pytest.raises(WireError) as caught:
        decode(bytes.fromhex(vector["hex"]), tuple(vector["sizes"]))
    assert caught.value.reason is Reason[vector["reason"]]
