"""A folder is judged by what its files say: whoever tampers with one of them is found out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmq.simulator.checker import BadLog, CheckerError
from fedmq.simulator.soak.evidence import check, ledgers, lines_with
from fedmq.simulator.soak.fleet import Fleet
from fedmq.simulator.soak.plan import Plan
from schemas.errors import ConfigError
from schemas.task import PublishOptions
from tests.fedmq.simulator.soak.folders import DEVICES, Folder, soaked

ONE, TWO = DEVICES


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, soaked())


def test_an_honest_folder_is_kept(folder: Folder) -> None:
    verdict, account, evidence = folder.judged()
    assert folder.kept()
    assert verdict.kept
    counts = (verdict.created, verdict.folded, verdict.rejected, verdict.superseded)
    assert counts == (8, 6, 1, 1)
    assert (verdict.lost, verdict.folded_twice, verdict.mismatches) == ([], [], [])
    assert verdict.digest == verdict.sequential_digest == account.digest
    assert verdict.versions_checked == 4
    assert (account.duplicates, account.nameless) == (2, 1)
    assert evidence == folder.evidence


def test_it_is_judged_as_often_as_one_likes_and_nothing_is_changed(folder: Folder) -> None:
    def files() -> dict[Path, bytes]:
        return {f: f.read_bytes() for f in folder.path.rglob("*") if f.is_file()}

    before = files()
    assert folder.judged() == folder.judged()
    assert files() == before


@pytest.mark.parametrize("archived", [0, 1, 2])
def test_archive_and_stream_say_the_same_wherever_one_ends(folder: Folder, archived: int) -> None:
    whole = folder.judged()
    for segment in folder.segments[archived:]:
        segment.unlink()
    folder.write_rest(soaked().raw)
    folder.write_evidence(trimmed_below="")
    assert folder.judged()[:2] == whole[:2]


def test_ledgers_are_read_by_device_in_the_order_of_their_lines(folder: Folder) -> None:
    assert ledgers(folder.path) == soaked().ledgers


# -- what is lost, and what is not -----------------------------------------------------------------


def test_an_update_that_the_log_does_not_have_is_lost(folder: Folder) -> None:
    raw = folder.rest()
    folder.write_rest([*raw[:-2], raw[-1]])  # the last one is noise
    verdict, _, _ = folder.judged()
    assert verdict.lost == [(ONE, 7, 4)]
    assert not folder.kept()


def test_an_update_that_only_its_witness_knows_is_lost(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    verdict, _, _ = folder.judged()
    assert verdict.lost == [(TWO, 7, 5)]
    assert verdict.mismatches == []
    assert not verdict.kept
    assert not folder.kept()


def test_what_is_open_is_not_lost_but_no_soak_ends_so(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    folder.write_evidence(open=[[TWO, 7, 5]])
    verdict, _, _ = folder.judged()
    assert (verdict.open, verdict.lost) == (1, [])
    assert verdict.kept
    assert not folder.kept()


def test_what_left_with_a_card_is_not_lost(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5)
    (folder.path / "removed.jsonl").write_text(f'["{TWO}", 7, 5]\n')
    verdict, _, _ = folder.judged()
    assert (verdict.removed, verdict.lost) == (1, [])
    assert folder.kept()


def test_a_ledger_that_is_gone_makes_strangers_of_its_updates(folder: Folder) -> None:
    (folder.path / "devices" / TWO / "ledger.jsonl").unlink()
    verdict, _, _ = folder.judged()
    assert (verdict.created, verdict.lost) == (4, [])
    assert {device for device, _, _ in verdict.strangers_folded} == {TWO}
    assert not folder.kept(), "nobody knows who they were"


def test_what_is_sent_only_once_may_be_lost_on_the_way_by_whoever_says_so(folder: Folder) -> None:
    folder.add_line(TWO, 7, 5, sent_once=True)
    verdict, _, _ = folder.judged()
    assert (verdict.unsent, verdict.lost) == (1, [])
    assert folder.kept()
    folder.add_line(TWO, 7, 6)
    verdict, _, _ = folder.judged()
    assert (verdict.unsent, verdict.lost) == (1, [(TWO, 7, 6)])


# -- logs ------------------------------------------------------------------------------------------


def test_trouble_is_counted_in_the_logs_of_our_own_processes(tmp_path: Path) -> None:
    here = Fleet(Plan(seed=1, seconds=1.0), tmp_path)
    (tmp_path / "logs").mkdir()
    here.broker = here.machine("broker", tuple)
    here.bridges = [here.machine(f"bridge-{n}", tuple) for n in range(2)]
    here.aggregators = [here.machine("aggregator-0", tuple)]
    trouble = "fedmq ERROR task_failed task=soak\nTraceback (most recent call last):\n  File\n"
    for name, text in {
        "broker": trouble,
        "bridge-0": "all is well\n",
        "bridge-1": "\udcff torn\n" + trouble.splitlines()[1] + "\n",
        "aggregator-0": 2 * trouble,
    }.items():
        (tmp_path / "logs" / f"{name}.log").write_text(text, errors="surrogateescape")
    assert lines_with(here, "Traceback") == {"bridge-1": 1, "aggregator-0": 2}
    assert lines_with(here, "task_failed") == {"aggregator-0": 2}


# -- what tells of a bug ---------------------------------------------------------------------------


def another_digest(folder: Folder) -> str:
    folder.evidence["published"]["2"] = "0" * 64
    folder.write_evidence()
    return "version 2 is 0000000000000000 for the service"


def another_newest_digest(folder: Folder) -> str:
    folder.evidence["published"]["3"] = "f" * 64
    folder.write_evidence()
    return "version 3 is ffffffffffffffff for the service"


def a_version_too_many(folder: Folder) -> str:
    folder.evidence["published"]["9"] = "0" * 64
    folder.write_evidence()
    return "version 9 was published, but is not due by the log"


def a_version_too_few(folder: Folder) -> str:
    del folder.evidence["published"]["3"]
    folder.write_evidence()
    return "version 3 is due by the log"


def another_count(folder: Folder) -> str:
    folder.evidence["status"]["updates_folded"] = 7
    folder.write_evidence()
    return "updates_folded is 7 for the service, 6 by the log"


def a_duplicate_that_nobody_counted(folder: Folder) -> str:
    folder.evidence["status"]["duplicates_dropped"] = 1
    folder.write_evidence()
    return "duplicates_dropped is 1 for the service, 2 by the log"


def a_refusal_that_never_was(folder: Folder) -> str:
    folder.evidence["status"]["updates_rejected"]["banned"] = 1
    folder.write_evidence()
    return "updates_rejected.banned is 1 for the service, 0 by the log"


def an_identity_used_twice(folder: Folder) -> str:
    folder.add_line(ONE, 7, 1)
    return f"{ONE}/7/1 was created twice"


@pytest.mark.parametrize(
    "tamper",
    [
        another_digest,
        another_newest_digest,
        a_version_too_many,
        a_version_too_few,
        another_count,
        a_duplicate_that_nobody_counted,
        a_refusal_that_never_was,
        an_identity_used_twice,
    ],
)
def test_what_contradicts_is_a_sentence(folder: Folder, tamper: Callable[[Folder], str]) -> None:
    said = tamper(folder)
    verdict, _, _ = folder.judged()
    assert any(said in mismatch for mismatch in verdict.mismatches), verdict.mismatches
    assert not verdict.kept
    assert not folder.kept()


def test_an_update_that_was_folded_beside_its_successor_was_folded_twice(folder: Folder) -> None:
    file = folder.path / "devices" / ONE / "ledger.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["replaced"] = 1
    file.write_text("\n".join(map(json.dumps, lines)))
    verdict, _, _ = folder.judged()
    assert verdict.folded_twice == [(ONE, 7, 1)]
    assert not folder.kept()


def test_other_bytes_than_were_created_have_settled_nothing(folder: Folder) -> None:
    file = folder.path / "devices" / ONE / "ledger.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["sha256"] = "0" * 64
    file.write_text("\n".join(map(json.dumps, lines)))
    verdict, _, _ = folder.judged()
    assert verdict.settled_wrong == [(ONE, 7, 1)]
    assert not folder.kept()


# -- what is retained of a lattice -----------------------------------------------------------------


def test_what_is_kept_of_a_lattice_is_read_and_compared(tmp_path: Path) -> None:
    soak = soaked(PublishOptions(lattice=True))
    folder = Folder(tmp_path, soak)
    assert folder.report()["blobs_checked"] == 8, "four keyframes, three diffs and a merged one"
    assert folder.kept()
    folder.write_retained(soak.manifest, soak.blobs | {"d1-1-0": soak.blobs["d1-0-1"]})
    assert not folder.kept()
    assert folder.judged()[0].mismatches == ["blob d1-1-0 does not lead from publication 1 to 2"]
    (tmp_path / "retained.msgpack").unlink()  # a soak of before has none
    assert folder.report()["blobs_checked"] == 0
    assert folder.kept()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_segment_with_one_other_byte_is_refused_by_name(
    folder: Folder, number: int, place: int
) -> None:
    segment = folder.segments[number]
    data = bytearray(segment.read_bytes())
    data[place] ^= 1
    segment.write_bytes(data)
    with pytest.raises(BadLog, match=segment.name):
        folder.judged()


def test_a_segment_that_is_missing_is_refused(folder: Folder) -> None:
    first, second = folder.segments
    first.unlink()
    with pytest.raises(BadLog, match=second.name):
        folder.judged()


def test_a_stream_that_was_trimmed_beyond_the_archive_is_a_gap(folder: Folder) -> None:
    folder.segments[-1].unlink()  # now the archive ends at the fourth entry
    raw = soaked().raw
    assert folder.kept(), "the stream still holds the archive's last entry"
    folder.write_rest(raw[5:])
    folder.write_evidence(trimmed_below=raw[5][0])
    with pytest.raises(BadLog, match="a gap"):
        folder.judged()


@pytest.mark.parametrize("field", [b"p", b"d", b"s"])
def test_a_stream_that_says_something_else_than_the_archive_is_refused(
    folder: Folder, field: bytes
) -> None:
    raw = folder.rest()
    altered = dict(raw[0][1])
    altered[field] = b"x" + altered[field]
    folder.write_rest([(raw[0][0], altered), *raw[1:]])
    with pytest.raises(BadLog, match="stream and archive differ"):
        folder.judged()


def test_an_origin_that_is_another_or_gone_is_refused_or_seen(folder: Folder) -> None:
    origin = folder.archive / "origin.msgpack"
    data = bytearray(origin.read_bytes())
    data[-1] ^= 1  # a parameter
    origin.write_bytes(data)
    assert not folder.kept()
    origin.unlink()
    with pytest.raises(CheckerError, match="origin"):
        folder.judged()


@pytest.mark.parametrize("file", ["evidence.json", "rest.msgpack"])
@pytest.mark.parametrize("content", [None, b"", b"\xc1"])
def test_what_is_no_finished_soak_is_refused_with_the_field(
    folder: Folder, file: str, content: bytes | None
) -> None:
    path = folder.path / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        check(folder.path)
    assert refused.value.field == "check"
    assert str(folder.path) in refused.value.remedy
