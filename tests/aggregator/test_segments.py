"""Segments: what was written is read, and nothing else is."""

from hashlib import sha256

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.fold import FOLD_ID
from aggregator.segments import (
    GONE,
    BrokenArchiveError,
    Logged,
    SegmentName,
    Tail,
    check_follows,
    check_names,
    pack,
    pack_origin,
    unpack,
    unpack_origin,
    without_device,
)
from schemas.errors import ConfigError
from schemas.log import EntryId
from schemas.names import DeviceId, TaskName
from tests.laws import LEAN

TASK = TaskName("pumps")
IDS = st.builds(EntryId, st.integers(0, 2**44), st.integers(0, 2**20))
FIELDS = st.dictionaries(st.binary(max_size=4), st.binary(max_size=64), max_size=5)
ENTRIES = st.dictionaries(IDS, FIELDS, min_size=1, max_size=8).map(
    lambda found: [Logged(key, found[key]) for key in sorted(found)]
)
HASHES = st.one_of(st.just(""), st.binary(min_size=32, max_size=32).map(bytes.hex))


def logged(ms: int, serial: int = 0, **fields: bytes) -> Logged:
    return Logged(EntryId(ms, serial), {name.encode(): value for name, value in fields.items()})


def name_of(entries: list[Logged]) -> str:
    return str(SegmentName(entries[0].id, entries[-1].id))


ENTRIES_3 = [logged(5, k=b"spec", p=b"{}"), logged(7, 1, k=b"tick"), logged(7, 2, k=b"tick")]
DATA = pack(TASK, ENTRIES_3, "")
NAME = name_of(ENTRIES_3)


def sealed(*parts: object) -> bytes:
    """Objects with a digest that is right, as a wrong writer would make them."""
    body = b"".join(msgpack.packb(part) for part in parts)
    return body + sha256(body).digest()


def title(**given: object) -> dict[str, object]:
    good = {"format": 1, "task": "pumps", "fold": FOLD_ID, "first": "5-0", "last": "5-0"}
    return good | {"count": 1, "previous": ""} | given


ONE = "000000000000005-000000_000000000000005-000000.seg"


@LEAN
@given(ENTRIES, HASHES)
def test_what_was_written_is_read(entries, previous) -> None:
    data = pack(TASK, entries, previous)
    segment = unpack(f"some/folder/{name_of(entries)}", data)
    assert list(segment.entries) == entries
    assert segment.hash == sha256(data).hexdigest()
    assert (segment.title.task, segment.title.previous) == (TASK, previous)


@LEAN
@given(IDS, IDS)
def test_a_name_says_what_it_was_made_of_and_sorts_by_time(one, two) -> None:
    name = SegmentName(min(one, two), max(one, two))
    assert SegmentName.parse(str(name)) == name
    others = sorted([name, SegmentName(one, one), SegmentName(two, two)])
    assert [str(each) for each in others] == sorted(str(each) for each in others)


def test_the_layout_is_what_an_independent_reader_expects() -> None:
    by_hand = sealed(title(), ["5-0", {b"k": b"tick"}])
    assert pack(TASK, [logged(5, k=b"tick")], "") == by_hand
    assert name_of([logged(5, k=b"tick")]) == ONE
    origin = {"format": 1, "task": "pumps", "epoch": 3, "params": bytes(8)}
    assert pack_origin(TASK, 3, bytes(8)) == msgpack.packb(origin)
    assert unpack_origin("origin", msgpack.packb(origin)) == (3, bytes(8))


def test_every_cut_is_refused() -> None:
    for end in range(len(DATA)):
        with pytest.raises(BrokenArchiveError, match="torn"):
            unpack(NAME, DATA[:end])
    with pytest.raises(BrokenArchiveError, match="torn"):
        unpack(NAME, DATA + b"\0")


def test_every_flipped_bit_is_refused() -> None:
    for place in range(len(DATA)):
        for bit in range(8):
            wrong = bytearray(DATA)
            wrong[place] ^= 1 << bit
            with pytest.raises(BrokenArchiveError, match="altered"):
                unpack(NAME, bytes(wrong))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((title(format=2), ["5-0", {}]), "format 2"),
        ((title(format="1"), ["5-0", {}]), "no title"),
        (([1], ["5-0", {}]), "no title"),
        ((title(count=0),), "count"),
        ((title(count=2), ["5-0", {}]), "piece of a log"),
        ((title(count=2**40), ["5-0", {}]), "piece of a log"),
        ((title(), ["5-0", {}], ["6-0", {}]), "holds more"),
        ((title(), ["5-0", {"k": b""}]), "not bytes"),
        ((title(), ["5-0"]), "piece of a log"),
        ((title(), ["5", {}]), "no id"),
        ((title(), [5, {}]), "no entry"),
        ((title(), ["6-0", {}]), "other entries"),
        ((title(count=2), ["5-0", {}], ["5-0", {}]), "out of order"),
        ((title(previous="x"), ["5-0", {}]), "previous"),
        ((), "piece of a log"),
    ],
)
def test_a_wrong_writer_is_refused_with_the_files_name(parts, words) -> None:
    data = sealed(*parts) if parts else b"\xdd\xff\xff\xff\xff"
    data = data if parts else data + sha256(data).digest()
    with pytest.raises(ConfigError, match=words) as raised:
        unpack(f"there/{ONE}", data)
    assert raised.value.field == f"there/{ONE}"


def test_a_file_that_was_renamed_is_refused() -> None:
    with pytest.raises(BrokenArchiveError, match="other entries"):
        unpack(ONE, DATA)
    for text in ("x.seg", ONE.upper(), ONE[1:], "000000000000006-000000_" + ONE[23:]):
        with pytest.raises(ConfigError, match="no segment's name"):
            SegmentName.parse(text)


def test_a_chain_shows_what_is_missing_or_comes_again() -> None:
    first = unpack(NAME, DATA)
    tail = check_follows(NAME, first, None)
    assert tail == Tail(EntryId(7, 2), sha256(DATA).hexdigest())
    later = [logged(8, k=b"tick")]
    second = unpack(name_of(later), pack(TASK, later, tail.hash))
    assert check_follows("second", second, tail).last == EntryId(8)
    with pytest.raises(BrokenArchiveError, match="first is missing"):
        check_follows("second", second, None)
    with pytest.raises(BrokenArchiveError, match="one is missing"):
        check_follows("second", second, Tail(EntryId(7, 2), "0" * 64))
    with pytest.raises(BrokenArchiveError, match="overlaps"):
        check_follows("first", first, tail)


def test_names_that_overlap_are_refused() -> None:
    a, b, c = (SegmentName(EntryId(x), EntryId(y)) for x, y in [(1, 3), (4, 6), (3, 4)])
    assert check_names("folder", [b, a]) == [a, b]
    with pytest.raises(ConfigError, match="overlaps"):
        check_names("folder", [a, b, c])


def test_an_erased_device_leaves_tombstones_in_its_places() -> None:
    mine, other = logged(1, k=b"up", d=b"d", p=b"x"), logged(2, k=b"up", d=b"e", p=b"y")
    later, about = logged(4, k=b"up", d=b"d", p=b"z"), logged(3, k=b"erase", p=b'{"device":"d"}')
    entries = [mine, other, about, later]
    segment = unpack(name_of(entries), pack(TASK, entries, ""))
    left = without_device(segment, DeviceId("d"), EntryId(3))
    assert left == (Logged(EntryId(1), GONE), other, about, later)
    assert [entry.gone for entry in left] == [True, False, False, False]


def test_a_torn_origin_is_refused() -> None:
    for data in (b"", b"\xc1", msgpack.packb({"format": 1}), msgpack.packb([1])):
        with pytest.raises(BrokenArchiveError, match="origin"):
            unpack_origin("there/origin.msgpack", data)
