from dataclasses import replace

import pytest

from fedmq.demo.summary import DeviceAccount, Summary, in_words, lost_updates

GOOD = Summary(
    accuracy=0.934,
    target=0.93,
    version=15,
    seconds=16.6,
    devices=20,
    seed=0,
    updates_created=90,
    updates_folded=80,
    updates_rejected={"too_stale": 2, "wrong_base": 1},
    updates_superseded=4,
    updates_open=2,
    updates_stored=1,
    updates_lost=0,
    duplicates_dropped=3,
    staleness={"mean": 0.5, "max": 3},
    bytes_up=200_000,
    bytes_down=3_000_000,
    payload_bytes_up=150_000,
    bytes_up_float32=3_000_000,
    links_cut=59,
)
ACCOUNTS = [
    DeviceAccount(created=50, open=2, superseded=0),
    DeviceAccount(created=40, open=0, superseded=4),
]


def test_what_is_accounted_for_is_not_lost() -> None:
    assert lost_updates(ACCOUNTS, folded=80, rejected=3, stored=1) == 0


@pytest.mark.parametrize(("folded", "lost"), [(79, 1), (70, 10), (81, -1)])
def test_what_is_missing_is_lost_and_what_is_too_much_shows(folded: int, lost: int) -> None:
    assert lost_updates(ACCOUNTS, folded=folded, rejected=3, stored=1) == lost


def test_a_run_keeps_its_promise_when_it_reached_the_target_and_lost_nothing() -> None:
    assert GOOD.reached
    assert not replace(GOOD, accuracy=0.9299).reached
    assert not replace(GOOD, updates_lost=1).reached
    assert not replace(GOOD, updates_lost=-1).reached


def test_the_words_tell_every_count() -> None:
    words = in_words(GOOD)
    assert "20 devices reached 93% held-out accuracy: 93.4% at version 15 after 17 s." in words
    assert "90 updates; 80 were folded, 3 refused, 4 replaced" in words
    assert "3 are still on their way, 0 lost" in words
    assert "cut 59 times; updates that came twice and were counted once: 3." in words
    assert "200.0 kB in all, 150.0 kB of it payload: 20 times less than float32" in words
    assert "Down came 3.00 MB" in words


def test_the_words_do_not_hide_a_miss() -> None:
    assert "did NOT reach" in in_words(replace(GOOD, accuracy=0.5))
    assert "7 lost" in in_words(replace(GOOD, updates_lost=7))


def test_a_run_without_payload_is_told_too() -> None:
    words = in_words(replace(GOOD, bytes_up=7, payload_bytes_up=0, bytes_up_float32=0))
    assert "7 B in all, 0 B of it payload. Down" in words
