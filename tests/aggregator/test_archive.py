"""A task as one file: nothing is lost in it, and nothing that is not whole comes out of it."""

import io
import zipfile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.archive import FORMAT, MEMBERS_MAX, Backup, pack, unpack
from schemas.errors import ConfigError
from schemas.names import TaskName
from tests.aggregator.world import Store, World


def backup(**given):
    world = World()
    for _ in range(3):
        world.send()
    store = Store()
    store.commit(world.fold)
    plain = {
        "small": store.small,
        "origin": b"\0" * 32,
        "arrays": store.vectors,
        "windows": store.windows,
        "devices": store.devices,
        "versions": {"0": b"{}"},
        "blobs": {f"k3-{version}": b"\1" * 32 for version in range(4)},
        "tail": [("1000009-0", {b"k": b"up", b"p": b"\xff\0"})],
    }
    return Backup(task=TaskName("pumps"), made_ms=5, **(plain | given))


WHOLE = pack(backup())


def test_what_goes_in_comes_out():
    assert unpack(WHOLE) == backup()


def test_any_tool_can_look_inside():
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        title = msgspec.json.decode(archive.read("fedmq.json"))
        assert archive.testzip() is None
    assert (title["format"], title["task"], title["epoch"]) == (FORMAT, "pumps", 3)


@LEAN
@given(keep=st.integers(0, len(WHOLE) - 1))
def test_a_torn_file_is_refused_wherever_it_was_torn(keep):
    with pytest.raises(ConfigError) as refused:
        unpack(WHOLE[:keep])
    assert refused.value.field == "file"
    assert "nothing was changed" in refused.value.remedy


@LEAN
@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(place, bit):
    altered = bytearray(WHOLE)
    altered[place] ^= 1 << bit
    try:
        found = unpack(bytes(altered))
    except ConfigError as exc:
        assert exc.field == "file"  # noqa: PT017 - either of two ways is right
    else:  # it hit what no reader looks at: a date, a flag, the padding of the title
        assert found.arrays == backup().arrays
        assert found.small == backup().small


def retitled(**changed):
    """The same file under a title that says something else."""
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    title = msgspec.json.decode(members["fedmq.json"]) | changed
    members["fedmq.json"] = msgspec.json.encode(title)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": FORMAT + 1}, "a newer fedmq wrote it"),
        ({"schema": 99}, "a newer fedmq wrote it"),
        ({"epoch": 4}, "different epochs"),
        ({"members": {}}, "does not hold a task"),
        ({"members": {"../etc/passwd": {"size": 1, "sha256": ""}}}, "is torn"),
        ({"members": {"small.json": {"size": 1 << 60, "sha256": ""}}}, "title"),
        ({"task": "../x"}, "task"),
    ],
    ids=str,
)
def test_a_title_that_does_not_fit_is_refused(changed, words):
    with pytest.raises(ConfigError, match=words):
        unpack(retitled(**changed))


def test_a_title_with_countless_members_is_refused():
    members = {f"blobs/{n}": {"size": 0, "sha256": ""} for n in range(MEMBERS_MAX + 1)}
    with pytest.raises(ConfigError, match=f"claims {MEMBERS_MAX + 1} members"):
        unpack(retitled(members=members))


def test_a_member_that_was_exchanged_is_refused_though_the_archive_is_sound():
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["origin.f32"] = b"\1" * len(members["origin.f32"])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ConfigError, match=r"was altered: origin\.f32"):
        unpack(file.getvalue())


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"not a zip"], ids=repr)
def test_what_is_no_export_is_refused(data):
    with pytest.raises(ConfigError, match="no export"):
        unpack(data)


def test_a_file_that_holds_the_checkpoint_of_another_arithmetic_is_refused():
    small = msgspec.json.decode(backup().small) | {"fold_id": "fold-0"}
    with pytest.raises(Exception, match="fold-0"):
        unpack(pack(backup(small=msgspec.json.encode(small))))
