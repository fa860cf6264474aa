import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from edge_agent import spool_schema
from edge_agent.spool import BOOTS_KEPT, LIVES_MAX, OpenUpdate, Spool
from schemas.errors import ConfigError
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.window import SPAN
from schemas.wire import decode_manifest, decode_update

BASE = (Epoch(1), ModelVersion(7))
BOOT = Boot(11)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pumps.pump-1.sqlite"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with_boot = opened(path, boot=11)
    yield with_boot
    with_boot.close()


def opened(path: Path, *, boot: int = 11) -> Spool:
    boots = count(boot)
    return Spool(path, new_boot=lambda: Boot(next(boots)))


def message(seq: Seq) -> bytes:
    return b"update %d" % seq


def put(spool: Spool, residual: bytes | None = None, replaces: Seq | None = None) -> Seq:
    seq = spool.put(message, base=BASE, residual=residual, replaces=replaces)
    assert seq is not None
    return seq


def sent(spool: Spool, residual: bytes | None = None) -> Seq:
    seq = put(spool, residual)
    assert spool.mark_sent(BOOT, seq)
    return seq


def everything(path: Path) -> list[tuple[object, ...]]:
    """All that is in the file, as another process would see it."""
    db = sqlite3.connect(path)
    try:
        tables = ("meta", "updates", "chunks")
        return [row for table in tables for row in db.execute(f"SELECT * FROM {table}")]  # noqa: S608
    finally:
        db.close()


# -- lives and their boots --------------------------------------------------------------------


def test_every_life_has_a_boot_of_its_own_and_counts_from_1(path: Path) -> None:
    with closing(opened(path, boot=11)) as first:
        assert (put(first), put(first)) == (1, 2)
    with closing(opened(path, boot=21)) as second:
        assert put(second) == 1
        found = [(each.boot, each.seq) for each in second.open_updates()]
    assert found == [(11, 1), (11, 2), (21, 1)]


def test_a_life_that_makes_nothing_leaves_no_trace(path: Path) -> None:
    with closing(opened(path, boot=11)) as first:
        put(first)
    before = everything(path)
    for boot in (21, 31):
        with closing(opened(path, boot=boot)) as later:
            assert later.boot == boot
    assert everything(path) == before


def test_the_newest_identity_of_an_earlier_life_is_known(path: Path) -> None:
    with closing(opened(path, boot=11)) as first:
        assert first.previous is None
        put(first)
        put(first)
        assert first.previous is None
    for boot in (21, 31):  # the second makes nothing
        with closing(opened(path, boot=boot)) as later:
            assert later.previous == (11, 2)
    with closing(opened(path, boot=41)) as fourth:
        put(fourth)
        assert fourth.previous == (11, 2)


def test_a_boot_that_an_earlier_life_has_used_is_drawn_again(path: Path) -> None:
    for number in range(BOOTS_KEPT + 1):
        with closing(opened(path, boot=1)) as spool:
            assert spool.boot == number + 1
            put(spool)
            spool.mark_sent(spool.boot, Seq(1))
            spool.settle(spool.boot, lambda _: True)
    with closing(opened(path, boot=1)) as spool:
        assert spool.boot == 1, "the oldest of them is forgotten"


def test_a_new_file_is_a_new_life(path: Path) -> None:
    opened(path, boot=11).close()
    path.unlink()
    with closing(opened(path, boot=99)) as replaced:
        assert (replaced.boot, replaced.created, replaced.open_updates()) == (99, 0, [])


def test_a_boot_number_of_four_full_bytes_is_kept(path: Path) -> None:
    with closing(opened(path, boot=0xFFFF_FFFF)) as spool:
        put(spool)
    with closing(opened(path)) as again:
        assert again.previous == (0xFFFF_FFFF, 1)
        assert again.open_updates()[0].boot == 0xFFFF_FFFF


def test_what_one_life_has_sent_is_settled_in_another(path: Path) -> None:
    with closing(opened(path, boot=11)) as first:
        sent(first)
    with closing(opened(path, boot=21)) as second:
        put(second)
        assert second.mark_sent(Boot(21), Seq(1))
        assert second.settle(Boot(31), lambda _: True) == []
        assert second.settle(Boot(11), lambda _: True) == [1]
        assert [(each.boot, each.seq) for each in second.open_updates()] == [(21, 1)]


def test_an_unsent_update_of_an_earlier_life_is_not_replaced(path: Path) -> None:
    with closing(opened(path, boot=11)) as first:
        put(first)
    before = everything(path)
    with closing(opened(path, boot=21)) as second:
        assert second.is_unsent(Boot(11), Seq(1))
        assert second.put(message, base=BASE, residual=b"two", replaces=Seq(1)) is None
    assert everything(path) == before


def test_totals_count_over_all_lives(path: Path) -> None:
    for boot in (11, 21):
        with closing(opened(path, boot=boot)) as spool:
            put(spool, replaces=put(spool))
    with closing(opened(path, boot=31)) as spool:
        assert (spool.created, spool.superseded) == (4, 2)


def test_at_most_64_numbers_are_open_over_all_lives(path: Path) -> None:
    for boot in range(4):
        with closing(opened(path, boot=100 * (boot + 1))) as spool:
            for _ in range(SPAN // 4):
                assert spool.has_room
                put(spool)
            assert spool.has_room == (boot < 3)


def test_a_life_makes_nothing_while_the_oldest_open_update_is_16_lives_old(path: Path) -> None:
    for life in range(LIVES_MAX):
        with closing(opened(path, boot=10 * (life + 1))) as spool:
            assert spool.has_room, life
            put(spool)
            assert spool.has_room
    with closing(opened(path, boot=1000)) as late:
        assert not late.has_room
        assert late.mark_sent(Boot(10), Seq(1))
        assert late.settle(Boot(10), lambda _: True) == [1]
        assert late.has_room


def test_everything_is_still_there_after_reopening(spool: Spool, path: Path) -> None:
    sent(spool, b"residual 1")
    put(spool, b"residual 2")
    spool.save(spec=b"spec", manifest=b"manifest", params=b"params")
    spool.add_chunks("blob", [(3, b"three")])
    spool.close()
    again = opened(path)
    assert again.open_updates() == [
        OpenUpdate(BOOT, Seq(1), sent=True, message=b"update 1"),
        OpenUpdate(BOOT, Seq(2), sent=False, message=b"update 2"),
    ]
    assert [again.load(key) for key in ("spec", "manifest", "params", "residual")] == [
        b"spec",
        b"manifest",
        b"params",
        b"residual 2",
    ]
    assert (again.created, again.superseded, again.trained) == (2, 0, BASE)
    assert again.chunks("blob") == {3: b"three"}
    again.close()


# -- the outbox -----------------------------------------------------------------------------


def test_numbers_count_from_1_and_the_message_is_written_for_its_number(spool: Spool) -> None:
    assert [put(spool), put(spool), put(spool)] == [1, 2, 3]
    assert [update.message for update in spool.open_updates()] == [
        b"update 1",
        b"update 2",
        b"update 3",
    ]


def test_an_unsent_update_is_replaced_under_a_new_number(spool: Spool) -> None:
    first = put(spool, b"one")
    second = put(spool, b"two", replaces=first)
    assert second == 2
    assert spool.open_updates() == [OpenUpdate(BOOT, Seq(2), sent=False, message=b"update 2")]
    assert (spool.created, spool.superseded) == (2, 1)
    assert spool.load("residual") == b"two"
    assert not spool.is_unsent(BOOT, first)
    assert spool.is_unsent(BOOT, second)


def test_an_update_that_was_sent_is_not_replaced_and_nothing_is_written(
    spool: Spool, path: Path
) -> None:
    first = sent(spool, b"one")
    before = everything(path)
    asked: list[Seq] = []

    def write(seq: Seq) -> bytes:
        asked.append(seq)
        return b"never"

    newer = (Epoch(1), ModelVersion(8))
    assert spool.put(write, base=newer, residual=b"two", replaces=first) is None
    assert everything(path) == before
    assert not asked
    assert put(spool) == 2, "the number was not used up"


def test_an_update_that_was_settled_is_not_replaced_either(spool: Spool, path: Path) -> None:
    first = sent(spool)
    assert spool.settle(BOOT, lambda _: True) == [first]
    before = everything(path)
    assert spool.put(message, base=BASE, residual=b"two", replaces=first) is None
    assert everything(path) == before


def test_an_update_that_was_replaced_is_not_sent(spool: Spool) -> None:
    first = put(spool)
    put(spool, replaces=first)
    assert not spool.mark_sent(BOOT, first)
    assert [update.sent for update in spool.open_updates()] == [False]


def test_marking_twice_says_yes_twice_so_that_an_update_can_be_sent_again(spool: Spool) -> None:
    seq = put(spool)
    assert spool.mark_sent(BOOT, seq)
    assert spool.mark_sent(BOOT, seq)
    assert not spool.is_unsent(BOOT, seq)


def test_a_receipt_settles_what_was_sent_and_nothing_else(spool: Spool) -> None:
    first, second = sent(spool), sent(spool)
    unsent = put(spool)
    assert spool.settle(BOOT, lambda seq: seq != first) == [second]
    assert [update.seq for update in spool.open_updates()] == [first, unsent]


def test_an_unsent_update_cannot_be_settled(spool: Spool) -> None:
    seq = put(spool)
    assert spool.settle(BOOT, lambda _: True) == []
    assert spool.is_unsent(BOOT, seq)


def test_a_message_that_cannot_be_written_leaves_nothing_behind(spool: Spool, path: Path) -> None:
    first = put(spool, b"one")
    before = everything(path)

    def fail(_seq: Seq) -> bytes:
        raise ValueError("no such codec")

    with pytest.raises(ValueError, match="no such codec"):
        spool.put(fail, base=BASE, residual=b"two", replaces=first)
    assert everything(path) == before
    assert put(spool, replaces=first) == 2


def test_none_leaves_the_stored_residual_as_it_is(spool: Spool) -> None:
    put(spool, b"one")
    put(spool, None)
    assert spool.load("residual") == b"one"


def test_the_base_of_the_newest_update_is_remembered(spool: Spool) -> None:
    assert spool.trained is None
    for base in ((Epoch(1), ModelVersion(0)), (Epoch(0xFFFF), ModelVersion(0xFFFF_FFFF))):
        spool.put(message, base=base, residual=None)
        assert spool.trained == base


def test_at_most_64_numbers_are_open(spool: Spool) -> None:
    for opened_so_far in range(SPAN):
        assert spool.has_room, opened_so_far
        sent(spool)
    assert not spool.has_room
    assert len(spool.open_updates()) == SPAN


def test_numbers_that_were_settled_in_between_still_count(spool: Spool) -> None:
    """A server's window slides over numbers, not over rows: the oldest must stay inside it."""
    for _ in range(SPAN):
        sent(spool)
    spool.settle(BOOT, lambda seq: seq > 1)
    assert [update.seq for update in spool.open_updates()] == [1]
    assert not spool.has_room
    spool.settle(BOOT, lambda seq: seq == 1)
    assert spool.has_room


def test_numbers_that_were_replaced_still_count(spool: Spool) -> None:
    oldest = sent(spool)
    newest = put(spool)
    while spool.has_room:
        newest = put(spool, replaces=newest)
    assert (oldest, newest) == (1, SPAN)
    assert len(spool.open_updates()) == 2


# -- files that are no spool ----------------------------------------------------------------


def test_garbage_is_refused_with_what_to_do_about_it(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this was a spool once" * 100)
    with pytest.raises(ConfigError) as refused:
        opened(path)
    assert refused.value.field == "state_dir"
    assert str(path) in refused.value.remedy
    assert "move it away" in refused.value.remedy
    assert path.read_bytes().startswith(b"this was a spool once"), "nothing was written over it"


def test_a_file_of_another_version_is_refused_with_what_to_do_about_it(path: Path) -> None:
    opened(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=4")
    db.close()
    with pytest.raises(ConfigError) as refused:
        opened(path)
    assert refused.value.field == "state_dir"
    assert "schema 4" in refused.value.remedy
    assert "update this one" in refused.value.remedy


# -- a model in pieces ----------------------------------------------------------------------


def test_chunks_of_one_blob_come_together(spool: Spool) -> None:
    spool.add_chunks("new", [(0, b"zero"), (2, b"two")])
    spool.add_chunks("new", [(1, b"one"), (2, b"two")])
    assert spool.chunks("new") == {0: b"zero", 1: b"one", 2: b"two"}


def test_chunks_of_another_blob_are_dropped(spool: Spool, path: Path) -> None:
    spool.add_chunks("old", [(0, b"zero")])
    spool.add_chunks("new", [])
    assert spool.chunks("old") == {}
    assert not [row for row in everything(path) if row[0] == "old"]


def test_chunks_of_several_blobs_are_kept_as_long_as_they_are_named(
    spool: Spool, path: Path
) -> None:
    spool.keep_pieces({("a", 0): b"a0", ("b", 1): b"b1"}, of=["a", "b"])
    spool.keep_pieces({("c", 0): b"c0", ("a", 0): b"again"}, of=["a", "b", "c"])
    assert spool.all_chunks() == {"a": {0: b"again"}, "b": {1: b"b1"}, "c": {0: b"c0"}}
    spool.keep_pieces({("c", 1): b"c1"}, of=["c", "a"])
    with closing(opened(path)) as again:
        assert again.all_chunks() == {"a": {0: b"again"}, "c": {0: b"c0", 1: b"c1"}}
    spool.keep_pieces({}, of=[])
    assert spool.all_chunks() == {}


def test_all_chunks_can_be_dropped(spool: Spool) -> None:
    spool.add_chunks("new", [(0, b"zero")])
    spool.drop_chunks()
    assert spool.chunks("new") == {}


def test_named_values_are_written_all_or_none(spool: Spool) -> None:
    spool.save(manifest=b"one", params=b"one")
    numbers = count()

    class Unwritable:
        def __conform__(self, _protocol: object) -> bytes:
            next(numbers)
            raise ValueError("the disk is full")

    with pytest.raises((sqlite3.Error, ValueError, TypeError)):
        spool.save(manifest=b"two", params=Unwritable())  # type: ignore[arg-type]
    assert (spool.load("manifest"), spool.load("params")) == (b"one", b"one")


def test_every_commit_is_synced_to_the_disk(spool: Spool) -> None:
    full = 2
    assert spool._db.execute("PRAGMA synchronous").fetchone() == (full,)


# -- older files ------------------------------------------------------------------------------


def test_a_spool_of_schema_1_is_brought_up_and_nothing_of_it_is_lost(path: Path) -> None:
    """As an agent before schema 2 left it: one update sent, one not, half a model fetched."""
    recorded = Path(__file__).parents[1] / "vectors" / "compatibility" / "spool_schema_1.sql"
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(recorded.read_text(encoding="utf-8"))
    named = old.execute("SELECT key, value FROM meta").fetchall()
    chunks = old.execute("SELECT * FROM chunks").fetchall()
    old.close()
    for _ in range(2):  # the second time it is already up
        with closing(Spool(path, new_boot=lambda: Boot(99))) as spool:
            assert (spool.boot, spool.previous) == (99, (77, 2))
            assert [(each.boot, each.seq, each.sent) for each in spool.open_updates()] == [
                (77, 1, True),
                (77, 2, False),
            ]
            assert [decode_update(each.message).seq for each in spool.open_updates()] == [1, 2]
            assert (spool.created, spool.superseded) == (2, 0)
            assert spool.trained == (1, 1)
            assert sorted(spool.chunks("k1-2")) == [0, 3]
            assert spool.local() == {}
            manifest, residual = spool.load("manifest"), spool.load("residual")
            assert manifest is not None
            assert decode_manifest(manifest).version == 1
            assert residual is not None
            assert len(residual) == 800
    after = everything(path)
    assert [row for row in chunks if row not in after] == []
    kept = {(row[0], row[1]) for row in after}
    assert [row for row in named if row not in kept] == []


def test_a_spool_of_schema_2_that_never_made_an_update_begins_its_first_life(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old:
        steps = "".join(spool_schema._MIGRATIONS[:2])
        old.executescript(f"{steps} PRAGMA user_version=2;")
        old.execute("INSERT INTO meta VALUES ('boot', x'0000004D')")
        old.commit()
    with closing(opened(path, boot=77)) as spool:
        assert (spool.boot, spool.previous, spool.created) == (77, None, 0)
        assert put(spool) == 1
    with closing(opened(path, boot=77)) as spool:
        assert (spool.boot, spool.previous) == (78, (77, 1))


def test_the_boot_of_an_older_file_is_not_drawn_again(path: Path) -> None:
    recorded = Path(__file__).parents[1] / "vectors" / "compatibility" / "spool_schema_1.sql"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as old:
        old.executescript(recorded.read_text(encoding="utf-8"))
    with closing(opened(path, boot=77)) as spool:
        assert spool.boot == 78


def test_an_update_whose_bytes_were_garbled_on_the_disk_is_never_sent(
    spool: Spool, path: Path
) -> None:
    put(spool)
    spool.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE updates SET message = CAST('update 9' AS BLOB)")
        db.commit()
    with pytest.raises(ConfigError, match=r"update 1 is garbled.*move it away"):
        opened(path)
