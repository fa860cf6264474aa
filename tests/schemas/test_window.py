import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.outcomes import FOLDED, Reason
from schemas.window import SPAN, SeqWindow, is_settled

REFUSED = int(Reason.TOO_STALE)


class Device:
    """The naive side: a plain dict of what arrived, a plain set of what is still open.

    Keeps the one rule of docs/wire.md: never issue `s` while any number <= s - 64 is open.
    """

    def __init__(self) -> None:
        self.next = 1
        self.open: list[int] = []
        self.arrived: dict[int, int] = {}

    def may_issue(self) -> bool:
        return all(seq > self.next - SPAN for seq in self.open)

    def issue(self) -> None:
        self.open.append(self.next)
        self.next += 1

    def replace(self) -> None:
        """The newest open number was never sent: its update goes out under the next one."""
        if self.open and self.open[-1] == self.next - 1:
            self.open.pop()
        self.issue()


def _agrees(window: SeqWindow, device: Device) -> None:
    top = max(device.arrived, default=0)
    low, bits = window.low, window.settled_above_low
    assert window.top == top
    assert 0 <= bits < 1 << SPAN
    for seq in range(max(1, device.next - 2 * SPAN), device.next + 2):
        below = seq <= top - SPAN
        known = device.arrived.get(seq, 0)
        assert window.outcome(seq) == (FOLDED if below else known)
        assert is_settled(seq, low, bits) == bool(below or known)
    assert all(is_settled(seq, low, bits) for seq in range(1, low + 1))
    assert not is_settled(low + 1, low, bits)


@LEAN
@given(seed=st.integers(0, 2**32), eagerness=st.sampled_from([0.2, 0.5, 0.8]))
def test_any_order_of_arrival_agrees_with_a_plain_set(seed, eagerness):
    rng, device, window = random.Random(seed), Device(), SeqWindow()
    for step in range(250):
        if device.may_issue() and rng.random() < eagerness:
            device.replace() if rng.random() < 0.2 else device.issue()
        elif device.open:
            seq = rng.choice(device.open[:3] if rng.random() < 0.5 else device.open)
            assert window.outcome(seq) == 0, "a first arrival was taken for a repetition"
            outcome = rng.choice([FOLDED, REFUSED, 255])
            window = window.settle(seq, outcome)
            device.open.remove(seq)
            device.arrived[seq] = outcome
        if device.arrived and rng.random() < 0.1:
            assert window.settle(rng.choice(list(device.arrived)), 99) == window
        if step % 10 == 0:
            _agrees(window, device)
    _agrees(window, device)
    assert len(window.outcomes) <= SPAN


def test_a_first_arrival_below_the_highest_number_is_not_lost():
    window = SeqWindow().settle(64, FOLDED)
    for seq in range(1, 64):
        assert window.outcome(seq) == 0
        window = window.settle(seq, REFUSED)
        assert window.outcome(seq) == REFUSED
    assert window.low == 64
    assert window.settled_above_low == 0


def test_what_lies_64_below_the_highest_number_counts_as_settled():
    window = SeqWindow().settle(100, REFUSED)
    assert window.outcome(36) == FOLDED
    assert window.outcome(37) == 0
    assert window.low == 36
    assert window.settled_above_low == 1 << 63


def test_the_first_outcome_is_the_one_that_is_kept():
    window = SeqWindow().settle(5, REFUSED)
    assert window.settle(5, FOLDED) is window


def test_a_number_far_below_the_window_neither_changes_nor_grows_it():
    window = SeqWindow().settle(2**32 - 1, FOLDED)
    assert window.settle(1, REFUSED) is window


def test_a_leap_forgets_what_it_passes_and_allocates_no_more_than_the_window():
    window = SeqWindow().settle(1, FOLDED).settle(2, FOLDED).settle(2**32 - 1, FOLDED)
    assert len(window.outcomes) == SPAN
    assert window.low == 2**32 - 1 - SPAN


def test_nothing_has_arrived_in_an_empty_window():
    window = SeqWindow()
    assert (window.low, window.settled_above_low, window.outcome(1)) == (0, 0, 0)
    assert not is_settled(1, 0, 0)


@pytest.mark.parametrize(
    ("seq", "settled"),
    [(0, True), (10, True), (11, False), (12, True), (73, False), (74, True), (75, False)],
)
def test_a_receipt_is_read_as_low_and_a_map_of_64_above_it(seq, settled):
    assert is_settled(seq, 10, (1 << 63) | 0b10) is settled


def test_bits_beyond_64_are_never_read():
    assert not is_settled(75, 10, (1 << 70) - 1)
