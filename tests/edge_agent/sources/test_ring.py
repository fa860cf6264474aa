import sqlite3
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.sources.ring import Ring
from schemas.errors import ConfigError


def ring(path: Path, form: str = "f", most: int = 5) -> Ring:
    return Ring(path, form, (2, 1), most)


def sample(number: float) -> np.ndarray:
    return np.full((2, 1), number, np.float32)


def test_the_newest_samples_survive_a_restart_with_their_numbers(tmp_path: Path) -> None:
    first = ring(tmp_path / "r")
    first.note_fields(("temp",))
    for number in range(8):
        first.add(sample(number), -number)
    first.close()
    again = ring(tmp_path / "r")
    x, y, number = again.all()
    assert (x[:, 0, 0].tolist(), y.tolist()) == ([3, 4, 5, 6, 7], [-3, -4, -5, -6, -7])
    assert (number, again.count, again.fields) == (3, 8, ("temp",))
    again.close()


def test_the_file_does_not_grow_beyond_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "r"
    kept = ring(path)
    for number in range(2000):
        kept.add(sample(number), 0)
        kept.write()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*), MIN(number) FROM samples").fetchone() == (5, 1995)
    db.close()
    kept.close()
    assert path.stat().st_size < 100_000


def test_what_was_kept_of_another_form_is_thrown_away(tmp_path: Path) -> None:
    first = ring(tmp_path / "r")
    first.add(sample(1), 1)
    first.close()
    other = ring(tmp_path / "r", "another")
    assert (len(other), other.count, other.fields) == (0, 0, ())
    other.close()


def test_a_power_cut_costs_what_was_not_written_and_nothing_else(tmp_path: Path) -> None:
    kept = ring(tmp_path / "r")
    kept.add(sample(1), 1)
    kept.write()
    kept.add(sample(2), 2)
    again = ring(tmp_path / "r")  # as after SIGKILL: the first was never closed
    assert again.all()[1].tolist() == [1]
    again.close()
    kept.close()


def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"garbage" * 1000)
    with pytest.raises(ConfigError, match=r"state_dir: .*move it away"):
        ring(tmp_path / "r")


def full_again(kept: Ring) -> None:
    """Until `PRAGMA max_page_count` is raised, as a full disk does."""
    (pages,) = kept._db.execute("PRAGMA page_count").fetchone()
    kept._db.execute(f"PRAGMA max_page_count = {pages}")


def test_what_a_full_disk_does_not_take_is_written_later_the_newest_first(tmp_path: Path) -> None:
    large = Ring(tmp_path / "r", "f", (5000,), 4)
    large.write()
    full_again(large)
    for number in range(3):
        large.add(np.full(5000, number, np.float32), number)

    class Meanwhile(deque[Any]):
        """Three samples come while the first three are being written."""

        def clear(self) -> None:
            super().clear()
            self.extend((number, b"") for number in (3, 4, 5))

    large._unwritten = Meanwhile(large._unwritten, 4)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        large.write()
    assert [number for number, _ in large._unwritten] == [2, 3, 4, 5]
    large._unwritten = deque(list(large._unwritten)[:1], 4)
    large._db.execute("PRAGMA max_page_count = 100000")
    large.write()
    assert large._db.execute("SELECT number FROM samples").fetchall() == [(2,)]
    large.close()


def test_a_file_that_is_held_or_a_full_disk_is_not_to_be_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.sources.ring.BUSY_S", 0.0)
    ring(tmp_path / "r").close()
    with closing(sqlite3.connect(tmp_path / "r", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match=r"cannot be used now \(.*locked\).*tried again"):
            ring(tmp_path / "r", "another")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be used now"):
        ring(tmp_path / "folder")
    ring(tmp_path / "r", "another").close()


DISK = ("FULL", "IOERR", "IOERR_WRITE", "BUSY", "READONLY", "READONLY_DBMOVED")


@pytest.mark.parametrize("name", DISK)
def test_an_error_of_the_disk_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def failing(*_: object) -> None:
        exc = sqlite3.OperationalError(name)
        exc.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
        raise exc

    monkeypatch.setattr(Ring, "_load", failing)
    with pytest.raises(ValueError, match="cannot be used now"):
        ring(tmp_path / "r")


def test_the_file_is_closed_when_no_one_writes_to_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ring(tmp_path / "r")
    kept.add(sample(1), 1)
    begun, go_on = threading.Event(), threading.Event()

    def slow(key: str, value: str) -> None:
        begun.set()
        assert go_on.wait(30)
        Ring._put(kept, key, value)

    monkeypatch.setattr(kept, "_put", slow)  # the writer stops in its transaction
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(kept.write)
        assert begun.wait(30)
        closing_it = pool.submit(kept.close)
        assert not closing_it.done()
        assert kept._disk.locked()
        go_on.set()
        writing.result(30)
        closing_it.result(30)
    kept.write()  # of a closed file nothing is asked
    again = ring(tmp_path / "r")
    assert len(again) == 1
    again.close()
