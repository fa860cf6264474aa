import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.spool import Spool
from fedmq.simulator.soak.cards import (
    adopted_on,
    copy_card,
    open_on,
    put_card,
    read_removed,
    tear,
)
from schemas.names import Boot, Epoch, ModelVersion, Seq

DEVICE = "device-00"
BASE = (Epoch(1), ModelVersion(7))


class Card:
    """A device's folder as the soak lays it out, and a life of its spool."""

    def __init__(self, root: Path) -> None:
        self.state, self.image = root / "state", root / "image"
        self.removed = root / "removed.jsonl"
        self.file = self.state / "soak.device-00.sqlite"

    def life(self, boot: int) -> Spool:
        return Spool(self.file, new_boot=lambda: Boot(boot))

    def lived(self, boot: int, *, make: int = 0, settle: tuple[int, int] | None = None) -> None:
        """One life: make some updates, settle one of an earlier life, and close in order."""
        spool = self.life(boot)
        for _ in range(make):
            put(spool)
        if settle is not None:
            before, seq = Boot(settle[0]), settle[1]
            assert spool.mark_sent(before, Seq(seq))
            assert spool.settle(before, lambda it: it == seq)
        spool.close()

    def dies(self) -> None:
        """A power cut: what lies on the card while its spool is open is what is left."""
        shutil.copytree(self.state, self.state.with_name("cut"))
        shutil.rmtree(self.state)
        self.state.with_name("cut").rename(self.state)

    def put(self, image: Path | None) -> None:
        put_card(self.state, image, self.removed, DEVICE, self.file)

    def open(self) -> set[tuple[str, int, int]]:
        return open_on(self.file, DEVICE)


def put(spool: Spool) -> Seq:
    seq = spool.put(lambda n: b"update %d" % n, base=BASE, residual=None)
    assert seq is not None
    return seq


def named(*whom: tuple[int, int]) -> set[tuple[str, int, int]]:
    return {(DEVICE, boot, seq) for boot, seq in whom}


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(tmp_path)


def test_open_is_what_waits_for_its_receipt(card: Card) -> None:
    card.lived(11, make=3)
    assert card.open() == named((11, 1), (11, 2), (11, 3))
    card.lived(12, make=1, settle=(11, 2))
    assert card.open() == named((11, 1), (11, 3), (12, 1))


def test_a_living_spool_is_read_beside_its_owner(card: Card) -> None:
    spool = card.life(11)
    put(spool)
    assert card.open() == named((11, 1))
    put(spool)
    assert card.open() == named((11, 1), (11, 2))
    spool.close()


def killed(card: Card) -> Path:
    """A card with a log that nobody has recovered."""
    spool = card.life(11)
    for _ in range(3):
        put(spool)
    spool.save(manifest=b"a manifest")
    card.dies()
    spool.close()
    return card.file.with_name(card.file.name + "-wal")


def test_a_witness_leaves_the_log_of_a_dead_device_for_it_to_recover(card: Card) -> None:
    log = killed(card)
    tear(card.file, b"noise")
    before = log.read_bytes(), card.file.read_bytes()
    assert card.open() == named((11, 1), (11, 2), (11, 3))
    assert adopted_on(card.file) == b"a manifest"
    assert (log.read_bytes(), card.file.read_bytes()) == before


def test_a_card_comes_back_with_the_log_that_it_had(card: Card) -> None:
    log = killed(card)
    copy_card(card.state, card.image)
    before = {file.name: file.read_bytes() for file in card.image.iterdir()}
    card.put(card.image)
    assert log.stat().st_size > 0
    assert {file.name: file.read_bytes() for file in card.state.iterdir()} == before
    assert {file.name: file.read_bytes() for file in card.image.iterdir()} == before
    assert read_removed(card.removed) == set()


def test_what_is_no_spool_as_yet_holds_nothing(card: Card) -> None:
    assert card.open() == set()
    assert adopted_on(card.file) is None
    assert not card.file.exists(), "a witness leaves no file behind"
    card.state.mkdir()
    sqlite3.connect(card.file).close()
    assert card.open() == set()
    assert adopted_on(card.file) is None


def test_the_model_of_a_device_is_the_one_on_its_card(card: Card) -> None:
    card.lived(11)
    assert adopted_on(card.file) is None
    spool = card.life(12)
    spool.save(manifest=b"a manifest")
    spool.close()
    assert adopted_on(card.file) == b"a manifest"


def test_an_old_card_brings_back_what_was_and_takes_the_rest_along(card: Card) -> None:
    card.lived(11, make=2)
    copy_card(card.state, card.image)
    card.lived(12, make=2, settle=(11, 1))
    card.put(card.image)
    assert card.open() == named((11, 1), (11, 2))
    assert read_removed(card.removed) == named((12, 1), (12, 2))


def test_an_image_stays_and_may_be_put_back_again(card: Card) -> None:
    card.lived(11, make=1)
    copy_card(card.state, card.image)
    card.put(card.image)
    card.lived(12, make=1)
    card.put(card.image)
    card.lived(13, make=1)
    card.put(card.image)
    assert card.open() == named((11, 1))
    assert read_removed(card.removed) == named((12, 1), (13, 1))


def test_a_newer_image_replaces_the_older_one_file_by_file(card: Card) -> None:
    card.lived(11, make=1)
    (card.state / "old").touch()
    copy_card(card.state, card.image)
    (card.state / "old").unlink()
    card.lived(12, make=1)
    copy_card(card.state, card.image)
    assert not (card.image / "old").exists()
    card.put(card.image)
    assert card.open() == named((11, 1), (12, 1))
    assert read_removed(card.removed) == set()


@pytest.mark.parametrize("image", [lambda _: None, lambda card: card.image])
def test_an_empty_card_takes_all_along(card: Card, image: Callable[[Card], Path | None]) -> None:
    card.lived(11, make=2)
    card.put(image(card))
    assert not card.state.exists()
    assert read_removed(card.removed) == named((11, 1), (11, 2))
    card.lived(12, make=1)
    assert card.open() == named((12, 1))


def test_what_was_settled_before_left_with_no_card(card: Card) -> None:
    card.lived(11, make=1)
    card.lived(12, settle=(11, 1))
    card.put(None)
    assert read_removed(card.removed) == set()


def test_a_card_that_was_never_used_may_be_copied_and_replaced(card: Card) -> None:
    copy_card(card.state, card.image)
    assert not card.image.exists()
    card.put(card.image)
    assert read_removed(card.removed) == set()


def test_what_left_is_written_down_line_by_line(card: Card) -> None:
    card.lived(11, make=2)
    card.put(None)
    lines = [json.loads(line) for line in card.removed.read_text().splitlines()]
    assert lines == [[DEVICE, 11, 1], [DEVICE, 11, 2]]
    assert read_removed(card.removed.with_name("nothing")) == set()


@pytest.mark.parametrize("noise", [b"\0", b"\xff" * 4095, bytes(range(256)) * 8])
def test_a_torn_log_loses_nothing_that_was_committed(card: Card, noise: bytes) -> None:
    spool = card.life(11)
    for _ in range(3):
        put(spool)
    card.dies()
    spool.close()
    log = card.file.with_name(card.file.name + "-wal")
    before = log.stat().st_size
    assert before > 0
    tear(card.file, noise)
    assert log.stat().st_size == before + len(noise)
    assert card.open() == named((11, 1), (11, 2), (11, 3))
    card.lived(12, make=1, settle=(11, 3))
    assert card.open() == named((11, 1), (11, 2), (12, 1))


def test_without_a_log_there_is_nothing_to_tear(card: Card) -> None:
    card.lived(11, make=1)
    tear(card.file, b"noise")
    assert [file.name for file in card.state.iterdir()] == [card.file.name]
    assert card.open() == named((11, 1))
