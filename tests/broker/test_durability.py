import pytest

from broker.durability import LOOK_S, SETTLE_S, Watch, is_quiet

QUIET = {"aof_pending_bio_fsync": 0, "aof_buffer_length": 0, "aof_last_write_status": "ok"}


@pytest.mark.parametrize(
    "busy",
    [{"aof_pending_bio_fsync": 1}, {"aof_buffer_length": 9}, {"aof_last_write_status": "err"}],
)
def test_what_waits_is_synced_or_failed_is_not_quiet(busy: dict[str, object]) -> None:
    assert is_quiet(QUIET)
    assert not is_quiet(QUIET | busy)


def test_it_is_sure_after_two_quiet_looks_when_a_write_can_no_longer_wait() -> None:
    watch = Watch(since=10.0)
    assert not watch.look(QUIET, 10.0 + SETTLE_S - 0.1)
    assert not watch.look(QUIET, 10.0 + SETTLE_S)
    assert not watch.look(QUIET, 10.0 + SETTLE_S + LOOK_S - 0.1)
    assert watch.look(QUIET, 10.0 + SETTLE_S + LOOK_S)


def test_one_quiet_moment_between_two_syncs_proves_nothing() -> None:
    watch, late = Watch(since=0.0), 10.0
    assert not watch.look(QUIET, late)
    assert not watch.look(QUIET | {"aof_pending_bio_fsync": 1}, late + LOOK_S)
    assert not watch.look(QUIET, late + 2 * LOOK_S)
    assert watch.look(QUIET, late + 3 * LOOK_S)
