import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from edge_agent.allowance import (
    CLOCK_IS_SET_S,
    DAY_S,
    Allowance,
    from_disk,
    publish_bytes,
    to_disk,
    told,
)

DAY_BYTES = 20_000.0
PACKET = 150
NOW_S = CLOCK_IS_SET_S + 1e8
SOON_S = PACKET * DAY_S / DAY_BYTES


def used(level: float = 0.0, at_s: float = 0.0) -> Allowance:
    return Allowance(level, at_s, PACKET)


def test_a_device_begins_with_one_packet_whatever_its_size_and_then_waits_for_the_next() -> None:
    fresh = Allowance()
    assert fresh.wait_s(10**9, DAY_BYTES, 5.0) == 0.0
    left = fresh.without(PACKET, DAY_BYTES, 5.0)
    assert left.wait_s(PACKET, DAY_BYTES, 5.0) == pytest.approx(SOON_S) == pytest.approx(648.0)
    assert left.wait_s(PACKET, DAY_BYTES, 5.0 + SOON_S / 2) == pytest.approx(SOON_S / 2)
    assert left.wait_s(PACKET, DAY_BYTES, 5.0 + SOON_S) == 0.0


def test_without_a_bound_nothing_is_held_back_and_nothing_counted() -> None:
    for allowance in (Allowance(), used(-500.0)):
        assert allowance.wait_s(10**9, 0.0, 1.0) == 0.0
        assert allowance.without(10**9, 0.0, 1.0) == allowance


def test_no_more_than_a_days_bytes_are_saved_up() -> None:
    rested = used()
    spent = 0
    while not rested.wait_s(PACKET, DAY_BYTES, 100 * DAY_S):
        rested = rested.without(PACKET, DAY_BYTES, 100 * DAY_S)
        spent += PACKET
    assert DAY_BYTES - PACKET < spent <= DAY_BYTES


def test_a_packet_larger_than_a_days_bytes_goes_up_when_a_day_is_saved_and_is_paid_off() -> None:
    large = 5 * int(DAY_BYTES)
    assert used().wait_s(large, DAY_BYTES, 0.0) == pytest.approx(DAY_S)
    left = used().without(large, DAY_BYTES, DAY_S)
    assert left.wait_s(large, DAY_BYTES, DAY_S) == pytest.approx(5 * DAY_S)


@LEAN
@given(
    pauses=st.lists(st.floats(0, 3 * DAY_S), max_size=40),
    size=st.integers(1, 60_000),
    day=st.floats(100, 1e6),
)
def test_over_any_time_no_more_goes_up_than_a_day_saved_and_what_the_time_brings(
    pauses, size, day
) -> None:
    allowance, now, spent = Allowance(0.0, 0.0, 0), 0.0, 0
    for pause in pauses:
        now += pause
        if not allowance.wait_s(size, day, now):
            allowance = allowance.without(size, day, now)
            spent += size
    over = max(size, day) - day  # a packet that is larger than a day's bytes is paid off later
    assert spent <= now * day / DAY_S + over + 1


@LEAN
@given(level=st.floats(-1e5, 1e5), size=st.integers(1, 60_000), day=st.floats(100, 1e6))
def test_after_the_wait_that_was_told_it_may_go_up(level, size, day) -> None:
    allowance = used(level, 7.0)
    assert allowance.wait_s(size, day, 7.0 + allowance.wait_s(size, day, 7.0) + 1e-3) == 0.0


def test_another_bound_holds_from_now_on() -> None:
    saved = used(15_000.0)
    assert saved.wait_s(PACKET, 100.0, 0.0) == 0.0
    assert saved.without(PACKET, 100.0, 0.0).level == -50.0, "only a day's of the new bound"
    assert used().wait_s(PACKET, 2 * DAY_BYTES, 0.0) == pytest.approx(SOON_S / 2)


# -- on the disk -------------------------------------------------------------------------------


def test_what_a_device_has_used_up_is_used_up_after_a_restart() -> None:
    raw = to_disk(used(40.0, 1000.0), NOW_S)
    again = from_disk(raw, NOW_S, 3.0)
    assert again == used(40.0, 3.0)
    assert again.wait_s(PACKET, DAY_BYTES, 3.0) == pytest.approx(SOON_S * 110 / 150)


def test_the_time_that_a_device_was_off_counts() -> None:
    raw = to_disk(used(), NOW_S)
    away = from_disk(raw, NOW_S + SOON_S / 2, 3.0)
    assert away.wait_s(PACKET, DAY_BYTES, 3.0) == pytest.approx(SOON_S / 2)


def test_a_clock_that_was_put_forward_fills_the_bucket_and_no_more() -> None:
    raw = to_disk(used(), NOW_S)
    again = from_disk(raw, NOW_S + 1e10, 3.0)
    left = again.without(PACKET, DAY_BYTES, 3.0)
    assert left.level == DAY_BYTES - PACKET


@pytest.mark.parametrize("clock_s", [NOW_S - 1e7, 12.0, 0.0, -5.0])
def test_a_clock_that_was_put_back_lets_no_time_have_passed_and_locks_nobody_out(
    clock_s: float,
) -> None:
    again = from_disk(to_disk(used(), NOW_S), clock_s, 3.0)
    assert again.wait_s(PACKET, DAY_BYTES, 3.0) == pytest.approx(SOON_S)
    assert again.wait_s(PACKET, DAY_BYTES, 3.0 + SOON_S) == 0.0


def test_a_clock_that_is_only_set_after_the_start_gives_no_day_for_nothing() -> None:
    raw = to_disk(used(), 12.0)  # 1970
    assert from_disk(raw, NOW_S, 3.0).wait_s(PACKET, DAY_BYTES, 3.0) == pytest.approx(SOON_S)


def test_a_clock_that_is_set_after_the_start_tells_how_long_the_device_was_off() -> None:
    again = from_disk(to_disk(used(), NOW_S), 5.0, 3.0)  # 1970 until the network has told it
    assert again.by_clock(6.0, 4.0).wait_s(PACKET, DAY_BYTES, 4.0) == pytest.approx(SOON_S - 1)
    later = again.by_clock(NOW_S + SOON_S / 2, 13.0)
    assert later.wait_s(PACKET, DAY_BYTES, 13.0) == pytest.approx(SOON_S / 2)
    assert later.by_clock(NOW_S - 7.0, 13.0) == later, "put back again"


def test_short_lives_without_a_clock_add_up() -> None:
    raw, lives = to_disk(used(), 12.0), 0
    while (life := from_disk(raw, 12.0, 3.0)).wait_s(PACKET, DAY_BYTES, 63.0):
        raw, lives = to_disk(life.until(DAY_BYTES, 63.0), 72.0), lives + 1
    assert lives == int(SOON_S / 60)
    assert Allowance().until(DAY_BYTES, 63.0) == Allowance()


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"short",
        bytes(21),
        struct.pack("<ddI", math.nan, 0.0, 0),
        struct.pack("<ddI", 0.0, math.inf, 0),
    ],
)
def test_what_cannot_be_read_counts_as_never_used(raw: bytes | None) -> None:
    assert from_disk(raw, NOW_S, 3.0) == Allowance()


# -- packets and words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "message", "size"),
    [
        ("a", 0, 2 + 2 + 1 + 2),
        ("fedmq/v1/digits/up/9/pump-7", 74, 2 + 2 + 27 + 2 + 74),  # 105 bytes
        ("t" * 23, 100, 2 + 127),
        ("t" * 23, 101, 3 + 128),
        ("t" * 23, 16_383 - 27, 3 + 16_383),
        ("t" * 23, 16_384 - 27, 4 + 16_384),
        ("t" * 23, (1 << 21) - 27, 5 + (1 << 21)),
    ],
)
def test_a_publish_takes_its_message_its_topic_and_its_head(topic, message, size) -> None:
    assert publish_bytes(topic, message) == size


def test_a_publish_is_as_long_as_a_clients() -> None:
    import socket

    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    here, there = socket.socketpair()
    client = Client(CallbackAPIVersion.VERSION2)
    client._sock = here
    client.publish("fedmq/v1/digits/up/9/pump-7", bytes(300), qos=1)
    assert len(there.recv(1000)) == publish_bytes("fedmq/v1/digits/up/9/pump-7", 300)
    client._sock = None
    here.close()
    there.close()


@pytest.mark.parametrize(
    ("wait_s", "words"),
    [(0.01, "1 s"), (89.4, "89 s"), (90, "2 min"), (840, "14 min"), (5400, "2 h"), (86400, "24 h")],
)
def test_a_wait_is_told_in_words(wait_s: float, words: str) -> None:
    assert told(wait_s) == words
