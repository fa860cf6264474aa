"""Power cuts: a real process is killed in the middle, and pieces of the log are torn off."""

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest
import servers

from edge_agent.spool import Spool
from schemas.errors import ConfigError

LIFE = """
import json, random, sys
from pathlib import Path
from zlib import crc32
from edge_agent.spool import Spool

spool, rng = Spool(Path(sys.argv[1])), random.Random(int(sys.argv[2]))


def say(what, *rest):
    print(json.dumps([what, *rest]), flush=True)


say("begun", spool.boot)
newest, boot = None, spool.boot
while True:
    what = rng.choice(["put", "put", "put", "more", "mark", "settle", "adopt", "chunks"])
    found = spool.open_updates()
    if what in ("put", "more") and spool.has_room:
        text = rng.randbytes(rng.randrange(1, 9000))
        replaces = newest if what == "more" else None
        seq = spool.put(lambda _: text, base=(1, crc32(text)), residual=text, replaces=replaces)
        if seq is not None:
            newest = seq
            say("put", boot, seq, crc32(text), replaces)
    elif what == "mark" and found:
        update = rng.choice(found)
        say("marking", update.boot, update.seq)
        spool.mark_sent(update.boot, update.seq)
        say("marked", update.boot, update.seq)
    elif what == "settle" and found:
        update = rng.choice(found)
        gone = [u.seq for u in found if u.boot == update.boot and u.seq <= update.seq and u.sent]
        say("settling", update.boot, gone)
        spool.settle(update.boot, lambda seq: seq <= update.seq)
        say("settled", update.boot, gone)
    elif what == "adopt":
        text = rng.randbytes(20_000)
        spool.save(manifest=b"%d" % crc32(text), params=text)
        say("adopted", crc32(text))
    elif what == "chunks":
        spool.add_chunks(str(rng.randrange(3)), [(rng.randrange(9), rng.randbytes(4096))])
        if not rng.randrange(9):
            spool.drop_chunks()
"""


class Witness:
    """What was told through the pipe, over all lives."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, int], int] = {}
        self.must: set[tuple[int, int]] = set()
        self.may: set[tuple[int, int]] = set()
        self.sent: set[tuple[int, int]] = set()
        self.boots: list[int] = []
        self.newest: tuple[int, int] | None = None
        self.adopted: int | None = None

    def hear(self, line: str) -> None:
        what, *rest = json.loads(line)
        getattr(self, what)(*rest)

    def begun(self, boot: int) -> None:
        assert boot not in self.boots
        self.boots.append(boot)

    def put(self, boot: int, seq: int, crc: int, replaced: int | None) -> None:
        assert (boot, seq) not in self.said, "made twice"
        self.said[boot, seq] = crc
        self.must.add((boot, seq))
        self.must.discard((boot, replaced or 0))
        self.newest = boot, seq

    def marking(self, boot: int, seq: int) -> None:
        pass

    def marked(self, boot: int, seq: int) -> None:
        self.sent.add((boot, seq))

    def settling(self, boot: int, seqs: list[int]) -> None:
        gone = {(boot, seq) for seq in seqs}
        self.must -= gone
        self.may |= gone

    def settled(self, boot: int, seqs: list[int]) -> None:
        self.may -= {(boot, seq) for seq in seqs}

    def adopted_(self, crc: int) -> None:
        self.adopted = crc


def test_what_was_acknowledged_is_there_whenever_the_power_is_cut(tmp_path: Path) -> None:
    path, witness, rng = tmp_path / "spool.sqlite", Witness(), random.Random(7)
    for life in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", LIFE, str(path), str(life)],
            cwd=servers.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            heard = [process.stdout.readline() for _ in range(rng.randrange(1, 60))]
            time.sleep(rng.random() / 500)  # not at a line's end: anywhere
            process.kill()
            heard += process.stdout.readlines()
        replaced_by_the_unheard = None
        for line in heard:
            if line.endswith("\n"):
                witness.hear(line.replace('"adopted"', '"adopted_"'))
        with closing(Spool(path)) as spool:
            assert spool.boot not in witness.boots
            found = {(each.boot, each.seq): each for each in spool.open_updates()}
            told = witness.newest
            if spool.previous != told:  # one more was on the disk, and not told in time
                assert spool.previous is not None
                boot, seq = spool.previous
                assert (boot, seq - 1) == told or (boot, seq) == (witness.boots[-1], 1)
                unheard = found[boot, seq]
                assert spool.previous not in witness.said
                witness.said[spool.previous] = crc32(unheard.message)
                witness.must.add(spool.previous)
                witness.newest = spool.previous
                replaced_by_the_unheard = boot, seq - 1
            missing = witness.must - found.keys()
            assert missing <= {replaced_by_the_unheard}
            assert found.keys() <= witness.must | witness.may
            witness.must = set(found)
            witness.may = set()
            for name, each in found.items():
                assert crc32(each.message) == witness.said[name]
                assert each.sent or name not in witness.sent
            residual = spool.load("residual")
            assert (residual is None) == (witness.newest is None)
            if residual is not None and witness.newest is not None:
                assert crc32(residual) == witness.said[witness.newest]
                assert spool.trained == (1, crc32(residual))
            params, manifest = spool.load("params"), spool.load("manifest")
            assert (params is None) == (manifest is None)
            if params is not None:
                assert manifest == b"%d" % crc32(params)
    assert len(witness.said) > 100


# -- torn writes ------------------------------------------------------------------------------


def states_of_a_history(path: Path) -> list[list[object]]:
    """What a spool held after each transaction; its log is left as by a power cut."""
    spool = Spool(path)
    states = [state(spool)]
    for number in range(12):
        text = b"%d" % number * 1500

        def write(_seq: object, text: bytes = text) -> bytes:
            return text

        seq = spool.put(write, base=(1, number), residual=text)  # type: ignore[arg-type]
        states.append(state(spool))
        assert seq is not None
        if number % 3 == 0:
            spool.mark_sent(spool.boot, seq)
            states.append(state(spool))
        if number % 5 == 4:
            spool.settle(spool.boot, lambda _: True)
            states.append(state(spool))
    copy = path.with_suffix(".cut")
    copy.mkdir()
    for file in path.parent.glob(path.name + "*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, copy)
    spool.close()
    return states


def state(spool: Spool) -> list[object]:
    return [spool.open_updates(), spool.load("residual"), spool.trained, spool.created]


@pytest.mark.parametrize("harm", ["cut", "zeros", "noise"])
def test_a_torn_log_leaves_the_transactions_before_the_tear(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "spool.sqlite"
    states = states_of_a_history(path)
    cut, rng = path.with_suffix(".cut"), random.Random(3)
    log = (cut / "spool.sqlite-wal").read_bytes()
    assert len(log) > 100_000, "the whole history is in the log"
    reached = []
    for number in range(60):
        at = rng.randrange(len(log)) if number else 0
        tail = len(log) - at
        rest = {"cut": b"", "zeros": bytes(tail), "noise": rng.randbytes(tail)}[harm]
        folder = tmp_path / f"{number}"
        folder.mkdir()
        shutil.copy(cut / "spool.sqlite", folder)
        (folder / "spool.sqlite-wal").write_bytes(log[:at] + rest)
        with closing(Spool(folder / "spool.sqlite")) as spool:
            found = state(spool)
            assert found in states or not spool.created, "a prefix of the transactions"
            reached.append(spool.created)
            spool.put(lambda _: b"goes on", base=(1, 99), residual=b"")  # type: ignore[arg-type]
        with closing(Spool(folder / "spool.sqlite")) as spool:
            assert spool.open_updates()[-1].message == b"goes on"
    assert len(set(reached)) > 6, "tears in many places"


def test_a_log_that_was_torn_within_one_frame_loses_that_transaction_only(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    states = states_of_a_history(path)
    cut = path.with_suffix(".cut")
    log = bytearray((cut / "spool.sqlite-wal").read_bytes())
    log[-100] ^= 1
    (cut / "spool.sqlite-wal").write_bytes(log)
    with closing(Spool(cut / "spool.sqlite")) as spool:
        assert state(spool) == states[-2]


def test_a_garbled_file_is_refused_with_how_to_begin_anew_or_holds_what_it_held(
    tmp_path: Path,
) -> None:
    path, rng = tmp_path / "spool.sqlite", random.Random(5)
    with closing(Spool(path)) as spool:
        for number in range(9):
            text = rng.randbytes(3000)
            spool.put(lambda _, t=text: t, base=(1, number), residual=text)  # type: ignore[arg-type, misc]
        before = state(spool)
    whole, told = path.read_bytes(), list[str]()
    for number in range(150):
        garbled = bytearray(whole)
        at = rng.randrange(len(whole)) if number > 20 else rng.randrange(100)
        garbled[at : at + 16] = rng.randbytes(len(garbled[at : at + 16]))
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "spool.sqlite").write_bytes(garbled)
        try:
            spool = Spool(folder / "spool.sqlite")
        except ConfigError as exc:
            told.append(f"{exc}")
            continue
        assert state(spool) == before
        spool.close()
    assert len(told) > 75
    assert all(line.startswith("state_dir: ") for line in told)
    assert all("move it away" in line or "newer fedmq" in line for line in told)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path)) as spool:
        spool.save(params=bytes(100_000))
    rest = path.read_bytes()[:-50_000]
    path.write_bytes(rest)
    with pytest.raises(ConfigError, match="move it away"):
        Spool(path)
    assert path.read_bytes() == rest, "nothing was written over it"
