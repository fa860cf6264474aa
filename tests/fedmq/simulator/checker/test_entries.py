from hashlib import sha256

import msgpack
import pytest

from fedmq.simulator.checker import BadLog, NotCovered, fold
from fedmq.simulator.checker.entries import folder_of, in_order, join, read_archive, read_origin
from tests.aggregator.world import EPOCH
from tests.fedmq.simulator.checker.logs import RandomLog, Recorder

TASK = "digits"
ENTRIES = [(f"{ms}-{ms % 3}", {b"k": b"tick", b"x": bytes([ms])}) for ms in range(1, 13)]
PIECES = [ENTRIES[:4], ENTRIES[4:9], ENTRIES[9:]]


def name_of(entries):
    (a, b), (c, d) = (map(int, entries[place][0].split("-")) for place in (0, -1))
    return f"{a:015d}-{b:06d}_{c:015d}-{d:06d}.seg"


def segment(entries, before, **changed):
    """A segment's bytes."""
    head = {
        "format": 1,
        "task": TASK,
        "fold": "fold-1",
        "first": entries[0][0],
        "last": entries[-1][0],
        "count": len(entries),
        "previous": before,
    }
    objects = [head | changed, *([text, fields] for text, fields in entries)]
    body = b"".join(map(msgpack.packb, objects))
    return body + sha256(body).digest()


def archive(root, pieces=PIECES, **changed):
    """An archive of some pieces; `changed` is of the second one's head."""
    folder = folder_of(root, TASK, EPOCH)
    folder.mkdir(parents=True)
    origin = {"format": 1, "task": TASK, "epoch": EPOCH, "params": Recorder().origin}
    (folder / "origin.msgpack").write_bytes(msgpack.packb(origin))
    previous, paths = "", []
    for number, entries in enumerate(pieces):
        data = segment(entries, previous, **(changed if number == 1 else {}))
        paths.append(folder / name_of(entries))
        paths[-1].write_bytes(data)
        previous = sha256(data).hexdigest()
    return paths


def read(root):
    return list(read_archive(root, TASK, EPOCH))


# -- whole archives ----------------------------------------------------------------------------


def test_an_archive_is_read_from_its_origin_to_its_end(tmp_path):
    archive(tmp_path)
    assert read(tmp_path) == ENTRIES
    origin = read_origin(tmp_path, TASK, EPOCH)
    assert (origin.task, origin.epoch, origin.params) == (TASK, EPOCH, Recorder().origin)


def test_an_archive_that_does_not_exist_holds_nothing(tmp_path):
    assert read(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 1, 20, 40])
def test_a_log_is_folded_alike_from_stream_and_archive(tmp_path, cut):
    recorder = RandomLog(3, 40, checksum=True).recorder
    raw = recorder.raw
    archive(tmp_path, [piece for piece in (raw[: cut // 2], raw[cut // 2 : cut]) if piece])
    origin = read_origin(tmp_path, TASK, EPOCH)
    whole = join(read_archive(tmp_path, TASK, EPOCH), raw[max(0, cut - 5) :])
    assert fold(origin.epoch, origin.params, whole) == fold(EPOCH, recorder.origin, raw)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
def test_a_segment_that_is_cut_anywhere_is_refused_by_name(tmp_path, number):
    path = archive(tmp_path)[number]
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(BadLog, match=path.name):
            read(tmp_path)


@pytest.mark.parametrize("number", range(3))
def test_a_segment_that_is_altered_anywhere_is_refused_by_name(tmp_path, number):
    path = archive(tmp_path)[number]
    whole = path.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(bytes(altered))
        with pytest.raises(BadLog, match=path.name):
            read(tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_segment_is_found_by_the_one_after_it(tmp_path, number):
    paths = archive(tmp_path)
    paths[number].unlink()
    with pytest.raises(BadLog, match=f"{paths[number + 1].name} does not follow"):
        read(tmp_path)


def test_a_missing_last_segment_is_a_gap_when_the_stream_was_trimmed_beyond(tmp_path):
    archive(tmp_path)[-1].unlink()
    with pytest.raises(BadLog, match="a gap"):
        list(join(read_archive(tmp_path, TASK, EPOCH), [("13-0", {})], ENTRIES[-1][0]))


def test_a_gap_is_told_by_the_trim_point_alone(tmp_path):
    archive(tmp_path)
    with pytest.raises(BadLog, match="a gap"):
        list(join(read_archive(tmp_path, TASK, EPOCH), [("14-0", {})], "13-0"))
    assert len(list(join(read_archive(tmp_path, TASK, EPOCH), [("14-0", {})], "12-0"))) == 13


def test_a_stream_that_was_trimmed_and_never_archived_is_a_gap():
    with pytest.raises(BadLog, match="a gap"):
        list(join([], ENTRIES[3:], ENTRIES[2][0]))
    assert list(join([], ENTRIES)) == ENTRIES


def test_two_segments_that_have_swapped_names_are_refused(tmp_path):
    first, second, _ = archive(tmp_path)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(BadLog, match=first.name):
        read(tmp_path)


def test_a_segment_that_was_rewritten_with_a_right_hash_breaks_the_chain(tmp_path):
    paths = archive(tmp_path)
    other = [(text, fields | {b"x": b"other"}) for text, fields in PIECES[1]]
    paths[1].write_bytes(segment(other, sha256(paths[0].read_bytes()).hexdigest()))
    with pytest.raises(BadLog, match=paths[2].name):
        read(tmp_path)


def test_segments_that_overlap_are_refused(tmp_path):
    archive(tmp_path, [ENTRIES[:5], ENTRIES[4:]])
    with pytest.raises(BadLog, match="overlaps"):
        read(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"task": "other"},
        {"count": 4},
        {"count": 6},
        {"count": 0},
        {"count": True},
        {"count": 10**12},
        {"first": "6-0"},
        {"last": "8-2"},
        {"previous": ""},
        {"previous": None},
        {"previous": "0" * 64},
    ],
)
def test_a_head_that_does_not_tell_the_truth_is_refused_by_name(tmp_path, changed):
    path = archive(tmp_path, **changed)[1]
    with pytest.raises(BadLog, match=path.name):
        read(tmp_path)


@pytest.mark.parametrize("changed", [{"format": 2}, {"fold": "fold-2"}])
def test_another_format_or_arithmetic_is_not_covered(tmp_path, changed):
    path = archive(tmp_path, **changed)[1]
    with pytest.raises(NotCovered, match=path.name):
        read(tmp_path)


@pytest.mark.parametrize("entry", [7, [], ["5-2"], ["5-2", {}, 1], [5, {}], ["5-2", {"k": b""}]])
def test_what_is_no_entry_is_refused_by_name(tmp_path, entry):
    paths = archive(tmp_path)
    head = {"format": 1, "task": TASK, "fold": "fold-1", "first": "5-2", "last": "5-2"}
    head |= {"count": 1, "previous": sha256(paths[0].read_bytes()).hexdigest()}
    body = msgpack.packb(head) + msgpack.packb(entry)
    paths[1].write_bytes(body + sha256(body).digest())
    with pytest.raises(BadLog, match=paths[1].name):
        read(tmp_path)


def test_ids_that_run_backwards_within_a_segment_are_refused(tmp_path):
    entries = [ENTRIES[0], ENTRIES[2], ENTRIES[1], ENTRIES[3]]
    archive(tmp_path, [entries])
    with pytest.raises(BadLog, match="does not follow"):
        read(tmp_path)


def test_a_file_that_is_no_segment_is_refused_by_name(tmp_path):
    (archive(tmp_path)[0].parent / "old.seg").write_bytes(b"")
    with pytest.raises(BadLog, match=r"old\.seg"):
        read(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"task": "other"}, {"epoch": 4}, {"params": b""}, {"params": b"12345"}, {"params": "text"}],
)
def test_an_origin_that_is_not_this_tasks_is_refused(tmp_path, changed):
    path = archive(tmp_path)[0].parent / "origin.msgpack"
    path.write_bytes(msgpack.packb(msgpack.unpackb(path.read_bytes()) | changed))
    with pytest.raises(BadLog, match="origin"):
        read_origin(tmp_path, TASK, EPOCH)


def test_an_origin_that_is_cut_or_missing_is_refused(tmp_path):
    path = archive(tmp_path)[0].parent / "origin.msgpack"
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole + b"\0", b"\x90"):
        path.write_bytes(data)
        with pytest.raises(BadLog, match="origin"):
            read_origin(tmp_path, TASK, EPOCH)
    path.unlink()
    with pytest.raises(BadLog, match="origin"):
        read_origin(tmp_path, TASK, EPOCH)


# -- stream and archive ------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(13))
def test_a_stream_may_overlap_the_archive(start):
    assert list(join(ENTRIES[:8], ENTRIES[min(start, 8) :])) == ENTRIES


def test_an_overlap_that_differs_is_refused():
    other = [*ENTRIES[:6], (ENTRIES[6][0], {b"k": b"other"}), *ENTRIES[7:]]
    with pytest.raises(BadLog, match=f"differ at entry {ENTRIES[6][0]}"):
        list(join(ENTRIES[:9], other[4:]))


def test_an_entry_that_the_overlap_lacks_is_refused():
    with pytest.raises(BadLog, match="differ"):
        list(join(ENTRIES[:9], ENTRIES[4:6] + ENTRIES[7:]))
    with pytest.raises(BadLog, match="differ"):
        list(join(ENTRIES[:5] + ENTRIES[6:9], ENTRIES[4:]))


def test_a_stream_that_runs_backwards_is_refused():
    with pytest.raises(BadLog, match="does not follow"):
        list(in_order([("2-0", {}), ("1-5", {})]))
