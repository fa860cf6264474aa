"""The contract: what was recorded, and what is said today, is what it describes."""

import json
import shutil
from pathlib import Path

import jsonschema
import msgpack
import msgspec
import pytest
import yaml

from aggregator.announce import Shelf, moves, records
from schemas.channels import CHANNELS
from schemas.outbox import Say
from schemas.task import read_task_file
from schemas.watch import DeviceState
from scripts.contract import files as contract
from tests.aggregator.test_fold import random_world
from tests.schemas.test_channels import matches

ROOT = Path(__file__).parents[2]
DOCUMENT = yaml.safe_load((ROOT / "schemas" / "asyncapi.yaml").read_text(encoding="utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]


def fits(name: str, message: object) -> bool:
    """Whether a message is what the contract says."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
    return jsonschema.Draft7Validator(schema).is_valid(message)


def unpacked(data: bytes) -> object:
    """The MessagePack array at the start; bytes as text of one character each."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    array = unpacker.unpack()
    return [each.decode("latin-1") if isinstance(each, bytes) else each for each in array]


def recorded(file: str) -> list[tuple[str, bytes]]:
    items = json.loads((ROOT / "tests" / "vectors" / f"{file}.json").read_text(encoding="utf-8"))
    return [(item["name"], bytes.fromhex(item["hex"])) for item in items]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("update", "Update"),
        ("manifest", "Manifest"),
        ("manifest_short", "ShortManifest"),
        ("receipt", "Receipt"),
    ],
)
def test_every_recorded_message_fits(file, kind):
    for what, data in recorded(file):
        assert fits(kind, unpacked(data)), what


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("Update", 2, 0),
        ("Update", 1, 65_536),
        ("Update", 7, "0"),
        ("Manifest", 3, "short"),
        ("Manifest", 9, 63),
        ("ShortManifest", 0, 1),
        ("ShortManifest", 3, "short"),
        ("ShortManifest", 5, 0),
        ("Receipt", 6, 256),
        ("Receipt", 0, 2),
    ],
)
def test_what_the_wire_refuses_does_not_fit(name, at, value):
    files = {"Update": "update", "Manifest": "manifest", "ShortManifest": "manifest_short"}
    _, data = recorded(files.get(name, "receipt"))[0]
    array = unpacked(data)
    assert fits(name, array)
    assert not fits(name, [*array[:at], value, *array[at + 1 :]])
    assert not fits(name, array[:7])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_aggregator_says_has_a_channel_and_fits(seed):
    world = random_world(seed, 60)
    changes = world.changes()
    said = list(records(world.state, changes, moves(world.state, Shelf())))
    by_name = {channel.name: channel for channel in CHANNELS}
    for say in (each for each in said if isinstance(each, Say)):
        (name,) = matches(say.suffix)
        channel = by_name[name]
        assert channel.speaker == "server" or not say.payload
        assert say.retain == channel.retained
        if say.payload:
            message = DOCUMENT["components"]["messages"][name]
            packed = message["contentType"] == "application/msgpack"
            found = unpacked(say.payload) if packed else json.loads(say.payload)
            forms = message["payload"].get("oneOf", [message["payload"]])
            assert any(fits(each["$ref"].rpartition("/")[2], found) for each in forms), found


def test_what_a_device_says_of_itself_fits():
    assert fits("DeviceState", json.loads(msgspec.json.encode(DeviceState(online=True, boot=7))))
    assert not fits("DeviceState", {"online": 1})


def test_fields_of_a_newer_peer_fit():
    assert fits("DeviceState", {"online": True, "boot": 7, "battery": 0.5})
    array = unpacked(recorded("receipt")[0][1])
    assert fits("Receipt", [*array, "more"])


def test_the_files_are_what_the_types_say():
    assert {path: path.read_text(encoding="utf-8") for path in contract.files()} == contract.files()


def test_the_check_finds_a_file_that_was_edited_and_writing_mends_it(tmp_path, monkeypatch, capsys):
    for path in contract.files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.setattr(contract, "ROOT", tmp_path)
    contract.main(["--check"])
    edited = tmp_path / "schemas" / "asyncapi.yaml"
    edited.write_text(edited.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        contract.main(["--check"])
    assert "schemas/asyncapi.yaml" in capsys.readouterr().err
    contract.main([])
    contract.main(["--check"])


def test_the_example_of_the_reference_is_a_task():
    page = (ROOT / "docs" / "reference" / "task.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert read_task_file(example).gate.metric == "accuracy"


def test_every_field_is_explained():
    silent = [
        f"{name}.{field}"
        for name, schema in SCHEMAS.items()
        for field, inner in schema.get("properties", {}).items()
        if not inner.get("description") and "allOf" not in inner
    ]
    assert silent == []
