import errno
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from fedmq.simulator.soak.device import DeviceFile, Ledger, live
from schemas.names import Boot, Epoch, ModelVersion, Seq

BASE = (Epoch(1), ModelVersion(7))


class Witnessed:
    """A device's disk and its ledger."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / "ledger.jsonl"
        self.spool = root / "spool.sqlite"

    def life(self, boot: int) -> tuple[Spool, Ledger]:
        """As a device process begins."""
        spool = Spool(self.spool, new_boot=lambda: Boot(boot))
        ledger = Ledger(self.ledger)
        ledger.catch_up(spool)
        return spool, ledger

    def lines(self) -> list[tuple[int, int, str, int | None]]:
        found = [json.loads(line) for line in self.ledger.read_text().splitlines()]
        return [(line["boot"], line["seq"], line["sha256"], line["replaced"]) for line in found]


def put(spool: Spool, replaces: Seq | None = None) -> tuple[Seq, bytes]:
    written: list[bytes] = []

    def write(seq: Seq) -> bytes:
        written.append(b"update %d of %d" % (seq, spool.boot))
        return written[-1]

    seq = spool.put(write, base=BASE, residual=None, replaces=replaces)
    assert seq is not None
    return seq, written[-1]


def made(spool: Spool, ledger: Ledger, replaces: Seq | None = None) -> Seq:
    """One update as the agent makes it: first the disk, then the witness."""
    seq, message = put(spool, replaces)
    ledger.created(spool.boot, seq, replaces, message)
    return seq


def hashed(boot: int, seq: int) -> str:
    return sha256(b"update %d of %d" % (seq, boot)).hexdigest()


@pytest.fixture
def witnessed(tmp_path: Path) -> Witnessed:
    return Witnessed(tmp_path)


def test_every_update_is_a_line_with_the_digest_of_its_bytes(witnessed: Witnessed) -> None:
    spool, ledger = witnessed.life(11)
    first = made(spool, ledger)
    made(spool, ledger, replaces=first)
    spool.close()
    assert witnessed.lines() == [(11, 1, hashed(11, 1), None), (11, 2, hashed(11, 2), 1)]


def test_a_ledger_only_grows_from_life_to_life(witnessed: Witnessed) -> None:
    for boot in (11, 12, 13):
        spool, ledger = witnessed.life(boot)
        made(spool, ledger)
        spool.close()
    assert [line[:2] for line in witnessed.lines()] == [(11, 1), (12, 1), (13, 1)]


def test_what_a_power_cut_kept_from_the_ledger_is_added_at_the_next_start(
    witnessed: Witnessed,
) -> None:
    spool, _ = witnessed.life(11)
    put(spool)  # and the power is gone before the witness has it
    spool.close()
    spool, ledger = witnessed.life(12)
    assert witnessed.lines() == [(11, 1, hashed(11, 1), None)]
    made(spool, ledger)
    spool.close()
    assert [line[:2] for line in witnessed.lines()] == [(11, 1), (12, 1)]


def test_it_is_added_once(witnessed: Witnessed) -> None:
    spool, _ = witnessed.life(11)
    put(spool)
    spool.close()
    for boot in (12, 13):  # the same one is the newest for both
        spool, ledger = witnessed.life(boot)
        ledger.catch_up(spool)
        spool.close()
    assert [line[:2] for line in witnessed.lines()] == [(11, 1)]


def test_one_that_took_anothers_place_says_so(witnessed: Witnessed) -> None:
    spool, ledger = witnessed.life(11)
    first = made(spool, ledger)
    put(spool, replaces=first)
    spool.close()
    witnessed.life(12)[0].close()
    assert witnessed.lines()[-1] == (11, 2, hashed(11, 2), 1)


@pytest.mark.parametrize("settled", [True, False])
def test_one_that_stands_beside_the_one_before_does_not(
    witnessed: Witnessed, *, settled: bool
) -> None:
    spool, ledger = witnessed.life(11)
    first = made(spool, ledger)
    assert spool.mark_sent(spool.boot, first)
    if settled:
        assert spool.settle(spool.boot, lambda _: True) == [first]
    put(spool)
    spool.close()
    witnessed.life(12)[0].close()
    assert witnessed.lines()[-1] == (11, 2, hashed(11, 2), None)


def test_it_is_told_from_what_was_replaced_before_and_in_other_lives(witnessed: Witnessed) -> None:
    spool, ledger = witnessed.life(11)
    made(spool, ledger, replaces=made(spool, ledger))
    spool.close()
    spool, ledger = witnessed.life(12)
    second = made(spool, ledger, replaces=made(spool, ledger))
    third = made(spool, ledger)
    assert (second, third) == (2, 3)
    put(spool)
    spool.close()
    witnessed.life(13)[0].close()
    assert witnessed.lines()[-1] == (12, 4, hashed(12, 4), None)


@pytest.mark.parametrize("replaces", [True, False])
def test_cards_that_came_and_went_do_not_mislead_it(
    witnessed: Witnessed, *, replaces: bool
) -> None:
    spool, ledger = witnessed.life(11)
    spool.close()
    shutil.copy(witnessed.spool, witnessed.root / "image")
    spool, ledger = witnessed.life(12)
    made(spool, ledger, replaces=made(spool, ledger))
    spool.close()
    shutil.copy(witnessed.root / "image", witnessed.spool)  # this disk has seen none replaced
    spool, ledger = witnessed.life(13)
    first = made(spool, ledger)
    put(spool, replaces=first if replaces else None)
    spool.close()
    witnessed.life(14)[0].close()
    assert witnessed.lines()[-1] == (13, 2, hashed(13, 2), 1 if replaces else None)


def test_a_full_disk_makes_the_device_wait_for_its_witness(
    witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, ledger = witnessed.life(11)
    write, tries = os.write, list[int]()

    def full_twice(file: int, data: bytes) -> int:
        tries.append(file)
        if len(tries) < 3:
            raise OSError(errno.EFBIG, "too large")
        return write(file, data)

    monkeypatch.setattr("fedmq.simulator.soak.device.os.write", full_twice)
    monkeypatch.setattr("fedmq.simulator.soak.device.LOOK_S", 0.0)
    made(spool, ledger)
    spool.close()
    assert witnessed.lines() == [(11, 1, hashed(11, 1), None)]


async def test_its_spool_has_the_bound_of_its_settings(
    witnessed: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened(Exception):  # noqa: N818 - it tells, it is no error
        pass

    def spool(path: Path, *, disk_mb: int) -> Spool:
        raise Opened(path, disk_mb)

    monkeypatch.setattr("fedmq.simulator.soak.device.Spool", spool)
    settings = AgentSettings(
        device="d", task="t", trainer="", state_dir=str(witnessed.root), disk_mb=8
    )
    with pytest.raises(Opened) as opened:
        await live(DeviceFile(settings, str(witnessed.ledger), "drain", 0.0))
    assert opened.value.args == (witnessed.root / settings.spool_name, 8)


def test_a_new_card_has_nothing_to_add(witnessed: Witnessed) -> None:
    spool, ledger = witnessed.life(11)
    made(spool, ledger)
    spool.close()
    witnessed.spool.unlink()
    witnessed.life(12)[0].close()
    assert [line[:2] for line in witnessed.lines()] == [(11, 1)]


def test_an_old_card_adds_nothing_that_is_known(witnessed: Witnessed) -> None:
    spool, ledger = witnessed.life(11)
    made(spool, ledger)
    spool.close()
    shutil.copy(witnessed.spool, witnessed.root / "image")
    spool, ledger = witnessed.life(12)
    made(spool, ledger)
    spool.close()
    shutil.copy(witnessed.root / "image", witnessed.spool)
    witnessed.life(13)[0].close()
    assert [line[:2] for line in witnessed.lines()] == [(11, 1), (12, 1)]
