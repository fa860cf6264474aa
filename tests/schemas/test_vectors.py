"""The vectors of tests/vectors, in both directions. They are data: no test writes them.

They were made by a writer that shares no code with fedmq, and belong to docs/wire.md: a client in
any language is right when it passes them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import generator, open_update

from schemas.codecs import CODECS, Ask, CodecOptions
from schemas.delta import to_dense
from schemas.errors import WireError
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


def vectors(file: str, part: str = "") -> pytest.MarkDecorator:
    items = json.loads((VECTORS / file).read_text(encoding="utf-8"))
    items = items[part] if part else items
    names = [item.get("name", item.get("device")) for item in items]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("vector", items, ids=names)


def _fields(vector: dict[str, Any], *others: str) -> dict[str, Any]:
    return {key: value for key, value in vector.items() if key not in {"name", "hex", *others}}


@vectors("update.json")
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


@vectors("digests.json", "spec")
def test_spec_digest(vector):
    spec = ParamSpec(tuple(TensorSpec(t["name"], tuple(t["shape"])) for t in vector["tensors"]))
    assert spec.digest.hex() == vector["digest"]
    assert spec.short_digest == vector["short_digest"]


@vectors("digests.json", "model")
def test_model_digest(vector):
    params = np.array(vector["params"], dtype=np.float32)
    digest = model_digest(bytes.fromhex(vector["spec_digest"]), params)
    assert digest.hex() == vector["digest"]
    assert base_digest(digest) == vector["base_digest"]


@vectors("digests.json", "shard")
def test_shard(vector):
    assert shard_of(vector["device"]) == vector["shard"]
    assert TaskTopics(DEFAULT_PREFIX, "digits").up(vector["device"]) == vector["topic"]
