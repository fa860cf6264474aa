"""The promise of wire 1, on recorded bytes: what newer and older peers say to each other.

tests/vectors/compatibility/ is data: it grows, and nothing in it is ever changed. docs/wire.md,
section 13, is the promise in words.
"""

import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from schemas.errors import ConfigError, WireError
from schemas.outcomes import Reason, outcome_name
from schemas.task import (
    EvaluateOptions,
    FinishOptions,
    GateOptions,
    TrainOptions,
    device_spec_from_json,
    spec_from_json,
)
from schemas.wire import decode_manifest, decode_receipt, decode_update

VECTORS = Path(__file__).parents[1] / "vectors"
RECORDED = VECTORS / "compatibility"
NEWER = json.loads((RECORDED / "newer.json").read_text(encoding="utf-8"))
DECODERS = {"update": decode_update, "manifest": decode_manifest, "receipt": decode_receipt}


def _known(kind: str, name: str) -> bytes:
    items = json.loads((VECTORS / f"{kind}.json").read_text(encoding="utf-8"))
    return bytes.fromhex(next(item["hex"] for item in items if item["name"] == name))


# -- a newer peer's message, read by this version -----------------------------------------------


@pytest.mark.parametrize(
    ("kind", "vector"), [(kind, v) for kind in DECODERS for v in NEWER[kind]], ids=str
)
def test_appended_elements_change_nothing(kind: str, vector: dict[str, str]) -> None:
    decode = DECODERS[kind]
    assert decode(bytes.fromhex(vector["hex"])) == decode(_known(kind, vector["like"]))


@pytest.mark.parametrize("vector", NEWER["spec"], ids=lambda v: v["name"])
def test_a_device_reads_what_it_obeys_of_a_newer_servers_spec(vector: dict[str, Any]) -> None:
    newer = vector["json"]
    spec = device_spec_from_json(msgspec.json.encode(newer))
    assert [t.name for t in spec.params.tensors] == [t["name"] for t in newer["params"]["tensors"]]
    assert spec.train.epochs == newer["train"]["epochs"]
    assert spec.codec.density == newer["codec"]["density"]
    assert spec.gate == GateOptions(canary=newer["gate"]["canary"])
    assert spec.phase == newer["phase"]


def test_what_a_tensor_of_a_newer_server_is_called_and_measures_gives_the_same_digest() -> None:
    newer = device_spec_from_json(msgspec.json.encode(NEWER["spec"][0]["json"]))
    older = spec_from_json((RECORDED / "spec_0_1.json").read_bytes())
    assert newer.params.digest == older.params.digest


@pytest.mark.parametrize("vector", NEWER["spec_that_needs_more"], ids=lambda v: v["name"])
def test_a_device_leaves_alone_what_it_does_not_understand(vector: dict[str, Any]) -> None:
    newer = NEWER["spec"][0]["json"] | {"needs": vector["needs"]}
    with pytest.raises(ConfigError, match=f"needs: {vector['told']}: update fedmq"):
        device_spec_from_json(msgspec.json.encode(newer))


def test_a_codec_of_a_newer_server_is_left_alone_by_name() -> None:
    newer = NEWER["spec"][0]["json"] | {"codec": {"name": "lattice8"}}
    with pytest.raises(ConfigError, match=r"codec\.name"):
        device_spec_from_json(msgspec.json.encode(newer))


def test_an_outcome_that_is_not_known_has_a_name_all_the_same() -> None:
    known = {int(reason) for reason in Reason}
    unknown = next(code for code in range(255, 1, -1) if code not in known)
    assert str(unknown) in outcome_name(unknown)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
def test_wire_4_is_refused_as_such_whatever_else_it_says(decode: Any) -> None:
    """The next one: with 2 and 3 begin short forms of wire 1."""
    with pytest.raises(WireError) as refused:
        decode(msgpack.packb([4, {"all": "new"}, "text"]))
    assert refused.value.reason is Reason.UNKNOWN_WIRE


# -- an older peer's message, read by this version ----------------------------------------------


def test_a_spec_of_an_older_server_means_what_it_meant() -> None:
    data = (RECORDED / "spec_0_1.json").read_bytes()
    for read in (spec_from_json, device_spec_from_json):
        spec = read(data)
        assert (spec.phase, spec.needs) == ("running", ())
        assert (spec.gate, spec.finish) == (GateOptions(), FinishOptions())
        assert spec.evaluate == EvaluateOptions()
        assert spec.train == TrainOptions()
        assert {tensor.kind for tensor in spec.params.tensors} == {"trained"}
        assert spec.params.wire_size == spec.params.size == 8


def test_what_this_version_writes_of_an_older_task_keeps_every_field_of_it() -> None:
    """An older reader of the log or of the topic finds all that it looks for, unchanged."""
    recorded = (RECORDED / "spec_0_1.json").read_bytes()
    written = msgspec.json.decode(msgspec.json.encode(spec_from_json(recorded)))

    def within(old: Any, new: Any) -> None:
        if isinstance(old, dict):
            for key, value in old.items():
                within(value, new[key])
        else:
            assert new == old

    within(json.loads(recorded), written)
