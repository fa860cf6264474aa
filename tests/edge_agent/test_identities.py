"""No identity ever means two things, whatever becomes of the card: random histories of one device.

The server's side of it is a dict: what every (boot, seq) that ever went out says.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.spool import LIVES_MAX, Spool
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.window import SPAN

BASE = (Epoch(1), ModelVersion(1))


class Device(RuleBasedStateMachine):
    """A device, its card, and images of the card that somebody took."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._path = Path(self._folder.name) / "card" / "spool.sqlite"
        self._said: dict[tuple[Boot, Seq], bytes] = {}
        self._made = 0
        self._images = 0
        self._newest: Seq | None = None
        self._expected: list[tuple[Boot, Seq]] = []
        self._expected_of: list[list[tuple[Boot, Seq]]] = []
        self._wake()

    def _wake(self) -> None:
        self.spool = Spool(self._path)
        self._newest = None

    def teardown(self) -> None:
        self.spool.close()
        self._folder.cleanup()

    def _put(self, replaces: Seq | None) -> None:
        if not self.spool.has_room:
            return
        self._made += 1
        text = b"what was learnt in round %d, wherever the card was" % self._made
        seq = self.spool.put(lambda _: text, base=BASE, residual=text, replaces=replaces)
        if seq is None:
            return
        identity = self.spool.boot, seq
        assert identity not in self._said, "made twice"
        self._said[identity] = text
        if replaces is not None:
            self._expected.remove((self.spool.boot, replaces))
        self._expected.append(identity)
        self._newest = seq
        assert self.spool.load("residual") == text

    @rule()
    def train(self) -> None:
        self._put(None)

    @precondition(lambda self: self._newest is not None)
    @rule()
    def train_more(self) -> None:
        self._put(self._newest)

    @rule(pick=st.integers(0, 63))
    def send(self, pick: int) -> None:
        found = self.spool.open_updates()
        if found:
            update = found[pick % len(found)]
            assert self.spool.mark_sent(update.boot, update.seq)

    @rule(pick=st.integers(0, 63))
    def hear_a_receipt(self, pick: int) -> None:
        found = self.spool.open_updates()
        if found:
            boot, low = found[pick % len(found)].boot, found[pick % len(found)].seq
            for seq in self.spool.settle(boot, lambda seq: seq <= low):
                self._expected.remove((boot, seq))

    @rule()
    def lose_power(self) -> None:
        self.spool.close()
        self._wake()

    @rule()
    def copy_the_card(self) -> None:
        self.spool.close()
        shutil.copytree(self._path.parent, Path(self._folder.name) / f"image-{self._images}")
        self._images += 1
        self._expected_of.append(list(self._expected))
        self._wake()

    @precondition(lambda self: self._images)
    @rule(pick=st.integers(0, 63))
    def put_an_old_image_back(self, pick: int) -> None:
        self.spool.close()
        shutil.rmtree(self._path.parent)
        number = pick % self._images
        shutil.copytree(Path(self._folder.name) / f"image-{number}", self._path.parent)
        self._expected = list(self._expected_of[number])
        self._wake()

    @rule()
    def replace_the_card(self) -> None:
        self.spool.close()
        shutil.rmtree(self._path.parent)
        self._expected = []
        self._wake()

    @invariant()
    def what_is_open_is_what_was_made_and_says_what_it_said(self) -> None:
        found = self.spool.open_updates()
        assert [(each.boot, each.seq) for each in found] == self._expected
        for each in found:
            assert self._said[each.boot, each.seq] == each.message

    @invariant()
    def what_is_open_is_within_what_a_server_remembers(self) -> None:
        found = self.spool.open_updates()
        assert len(found) <= SPAN
        assert len({each.boot for each in found}) <= LIVES_MAX
        for boot in {each.boot for each in found}:
            seqs = [each.seq for each in found if each.boot == boot]
            assert max(seqs) - min(seqs) < SPAN


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
