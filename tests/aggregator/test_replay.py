"""A replay gives the same bits, finds what differs, and can leave a device out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.fold import Decided
from aggregator.replay import Replay, check_fold, length
from aggregator.segments import GONE, Logged
from aggregator.state import TaskState, origin_state
from schemas.delta import Dense, Sparse
from schemas.errors import ConfigError
from schemas.log import (
    Arrived,
    DeviceErased,
    Entry,
    EpochSet,
    Evaluated,
    ModelSet,
    PhaseSet,
    Tick,
    to_fields,
)
from schemas.names import DeviceId
from schemas.outcomes import FOLDED, Reason
from schemas.strategy import StalenessOptions
from schemas.task import GateOptions, PublishOptions
from tests.aggregator.world import EPOCH, START_MS, World, arrived, make_spec, ramp, vector
from tests.laws import LEAN

A, B, C = "a", "b", "c"


class Recorded(World):
    """A world that keeps the digest of every version that it publishes, as Redis would."""

    def append(self, body: Any, *, after_ms: int = 1) -> None:
        super().append(body, after_ms=after_ms)
        for version, release in self.changes().releases.items():
            self.digests[version] = release.named.model_digest.hex()[:16]
        self.models[self.state.model.version] = self.model.copy()

    def __post_init__(self) -> None:
        self.digests: dict[int, str] = {}
        self.models: dict[int, Any] = {}
        super().__post_init__()

    def replayed(self, **given: Any) -> Replay:
        replay = Replay(self.begin, **({"recorded": self.digests} | given))
        for entry in self.log:
            if replay.done:
                break
            replay.apply(stored(entry))
        return replay

    def begin(self) -> TaskState:
        return origin_state(EPOCH, self.params)


def stored(entry: Entry) -> Logged:
    return Logged(entry.id, to_fields(entry.body))


def busy(**given: Any) -> Recorded:
    """Three devices, staleness, a refusal, a duplicate, a tick."""
    plain = {"buffer_size": 2, "staleness": StalenessOptions("polynomial"), "momentum": 0.5}
    world = Recorded(make_spec(**(plain | {"publish": PublishOptions(every=2)} | given)))
    rng = np.random.default_rng(5)
    for number in range(12):
        device = (A, B, C)[number % 3]
        base = max(world.state.bases) if number % 4 else min(world.state.bases)
        data = world.send(vector(rng), device=device, base_version=base)
        if number == 5:
            world.append(arrived(data, device=device))
            world.append(arrived(b"\xc1", device=device))
            world.tick(1)
    return world


def test_a_replay_finds_every_version_as_it_was_recorded() -> None:
    for world in (busy(), busy(name="fedasync", views=3), busy(codec="topk_int8")):
        findings = world.replayed().findings
        assert (findings.same, findings.unrecorded) == (len(world.digests), 0)
        assert findings.same > 2
        assert not findings.different
        assert findings.entries == len(world.log)
        assert findings.updates == 12


def test_an_update_that_was_altered_is_found_at_the_first_version_it_went_into() -> None:
    world = busy()
    place = next(n for n, e in enumerate(world.log) if isinstance(e.body, Arrived))
    entry = world.log[place]
    assert isinstance(entry.body, Arrived)
    data = bytearray(entry.body.data)
    data[-1] ^= 1
    world.log[place] = Entry(entry.id, replace(entry.body, data=bytes(data)))
    different = world.replayed().findings.different
    assert different[0].version == 2
    assert different[0].recorded == world.digests[2]
    assert different[0].folded != different[0].recorded


def test_every_version_can_be_had_again_published_or_not() -> None:
    world = busy()
    assert set(world.models) - set(world.digests), "some were never published"
    for version, params in world.models.items():
        model = world.replayed(until=version).model
        assert model.version == version
        assert model.params.tobytes() == params.tobytes()
    with pytest.raises(ConfigError, match="until: 99 is not reached"):
        _ = world.replayed(until=99).model


def test_a_log_that_begins_in_the_middle_is_refused() -> None:
    world = busy()
    replay = Replay(world.begin, recorded={})
    with pytest.raises(ConfigError, match="begins in the middle"):
        replay.apply(stored(world.log[1]))


def test_entries_that_cannot_be_folded_are_refused_with_their_id() -> None:
    world = busy()
    replay = world.replayed()
    with pytest.raises(ConfigError, match="cannot be folded"):
        replay.apply(stored(world.log[0]))  # it runs backwards
    with pytest.raises(ConfigError, match="cannot be read"):
        replay.apply(Logged(world.log[-1].id, {b"k": b"new kind"}))
    with pytest.raises(ConfigError, match="fold-0"):
        check_fold("file", "fold-0")


# -- what was decided --------------------------------------------------------------------------


def test_whoever_watches_is_told_of_every_update_that_is_decided() -> None:
    world = busy()
    rows: list[Decided] = []
    world.replayed(observer=rows.append)
    assert len(rows) == 13  # the duplicate was decided before
    first, second, third = rows[:3]
    assert [(r.device, r.seq, r.version) for r in rows[:3]] == [(A, 1, 1), (B, 1, 1), (C, 1, 2)]
    assert (first.base, first.staleness, first.weight, first.outcome) == (0, 0, 1.0, FOLDED)
    assert second.entry_id == world.log[2].id
    assert third.delta is not None
    (refused,) = [row for row in rows if row.outcome != FOLDED]
    assert (refused.outcome, refused.delta, refused.base) == (Reason.MALFORMED, None, -1)
    stale = [row for row in rows if row.staleness]
    assert stale
    assert all(row.weight == (1 + row.staleness) ** -0.5 for row in stale)
    assert sum(row.weight for row in rows) == pytest.approx(world.state.tally.weight)


def test_a_refused_update_is_told_with_its_number_and_its_reason() -> None:
    world = Recorded()
    world.send(device=A, base_version=7)
    rows: list[Decided] = []
    world.replayed(observer=rows.append)
    (row,) = rows
    assert (row.seq, row.base, row.staleness) == (1, 7, -7)
    assert (row.outcome, row.weight, row.version) == (Reason.FUTURE_BASE, 0.0, 0)


def test_the_length_of_a_delta_adds_up_what_is_repeated() -> None:
    assert length(Dense(np.array([3, 4], np.float32))) == 5
    repeated = Sparse(np.array([1, 1, 0]), np.array([1, 2, 4], np.float32))
    assert length(repeated) == 5


# -- without a device --------------------------------------------------------------------------


def test_leaving_out_a_device_that_sent_nothing_changes_no_bit() -> None:
    for world in (busy(), busy(name="fedasync", views=3)):
        replay = world.replayed(without=frozenset({DeviceId("nobody")}))
        assert replay.model.params.tobytes() == world.model.tobytes()


DRAWN = st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(-8, 8)), max_size=12)


@LEAN
@given(DRAWN, st.integers(1, 3), st.integers(1, 3))
def test_what_is_left_out_is_the_direct_contribution_and_nothing_else(
    sends, buffer_size, every
) -> None:
    world = Recorded(make_spec(buffer_size=buffer_size, publish=PublishOptions(every=every)))
    for device, step in sends:
        world.send(world.ones * np.float32(step), device=device)
    replay = world.replayed(without=frozenset({DeviceId(B)}))
    assert not replay.findings.different, "the audit is of the honest fold"
    assert replay.version == len(sends) // buffer_size
    counted = sends[: replay.version * buffer_size]
    total = sum(step for device, step in counted if device != B) / buffer_size
    expected = ramp() + np.float32(total)
    assert replay.model.params == pytest.approx(expected, abs=1e-4)


def test_buffers_admission_and_versions_stay_as_logged() -> None:
    for world in (busy(), busy(name="fedasync", views=3)):
        replay = world.replayed(without=frozenset({DeviceId(A)}))
        shadow = replay._shadow
        assert shadow is not None
        for one, two in ((shadow.state, replay.honest.state),):
            assert one.model.version == two.model.version
            assert one.model.buffered == two.model.buffered
            assert one.windows == two.windows
            assert list(one.bases.items()) == list(two.bases.items())
            assert (one.tally.folded, one.tally.rejected) == (two.tally.folded, two.tally.rejected)
            assert one.releases.keys() == two.releases.keys()
        assert replay.model.digest != world.digests[max(world.digests)]


def test_without_the_honest_bases_the_shadow_would_refuse_what_was_folded(monkeypatch) -> None:
    world = busy()
    monkeypatch.setattr("aggregator.replay.Replay._follow", _deaf)
    replay = world.replayed(without=frozenset({DeviceId(A)}))
    assert replay._shadow is not None
    assert replay._shadow.state.tally.rejected["wrong_base"]


def _deaf(self: Replay, entry: Entry) -> Any:
    assert self._shadow is not None
    self._shadow.apply(entry)
    return self._shadow.take_changes()


def test_a_rollback_goes_back_to_what_the_shadow_had_at_that_version() -> None:
    world = Recorded(make_spec())
    world.send(device=A)
    world.send(device=B)
    world.send(device=A)
    world.append(ModelSet(world.models[2].tobytes(), 2))
    world.send(device=A)
    assert (world.model - ramp()).tolist() == [3.0] * 8
    replay = world.replayed(without=frozenset({DeviceId(B)}))
    assert (replay.model.params - ramp()).tolist() == [2.0] * 8
    assert not replay.findings.different
    assert not replay.findings.notes


def test_a_rollback_to_before_the_beginning_is_told() -> None:
    world = Recorded(make_spec())
    world.send(device=A)
    begun = len(world.log)
    world.send(device=A)
    world.append(ModelSet(world.models[1].tobytes(), 1))

    def begin() -> TaskState:
        again = Recorded(make_spec())
        again.send(device=A)
        return again.state

    replay = Replay(begin, recorded={}, without=frozenset({DeviceId(A)}))
    for entry in world.log[begun:]:
        replay.apply(stored(entry))
    (note,) = replay.findings.notes
    assert "made before this replay begins" in note


def test_a_gate_that_rolls_back_gives_the_shadow_its_own_model() -> None:
    gate = GateOptions(metric="height", by="server", better="higher", on_worse="rollback")
    world = Recorded(make_spec(gate=gate))
    world.append(Evaluated(0, 1, {"height": 1.0}))
    world.send(device=A)
    world.append(Evaluated(1, 1, {"height": 2.0}))
    world.send(device=B)
    world.append(Evaluated(2, 1, {"height": 0.0}))
    assert world.state.model.version == 3
    replay = world.replayed(without=frozenset({DeviceId(A)}))
    assert replay.version == 3
    assert replay.model.params.tolist() == ramp().tolist()


def test_a_restored_task_is_followed_into_its_new_epoch() -> None:
    world = busy()
    world.append(EpochSet(9))
    world.send(device=A)
    world.send(device=B)
    world.append(PhaseSet("paused"))
    replay = world.replayed(without=frozenset({DeviceId(C)}))
    assert not replay.findings.different
    assert replay.honest.state.epoch == 9
    assert replay.findings.updates == 14


# -- what is gone ------------------------------------------------------------------------------


def test_a_tombstone_is_told() -> None:
    world = busy()
    replay = Replay(world.begin, recorded=world.digests)
    for entry in world.log:
        device = getattr(entry.body, "device", None)
        replay.apply(Logged(entry.id, GONE) if device == B else stored(entry))
    first = next(e.id for e in world.log if getattr(e.body, "device", None) == B)
    (sentence,) = replay.findings.erased
    assert sentence.startswith(f"4 updates were erased, the first at entry {first}: from there on")
    assert replay.findings.different


@pytest.mark.parametrize("gone", [False, True])
def test_a_gap_before_an_erasure_is_told(gone) -> None:
    world = busy()
    world.append(DeviceErased(DeviceId(B)))
    world.append(Tick())
    if gone:
        world.log = [e for e in world.log if getattr(e.body, "device", A) != B] + world.log[-2:-1]
        world.log.sort(key=lambda entry: entry.id)
    sentences = world.replayed().findings.erased
    assert len(sentences) == int(gone)
    assert all("b was erased at entry" in sentence for sentence in sentences)


def test_the_world_begins_where_these_tests_think() -> None:
    make: Callable[[], World] = Recorded
    assert make().log[0].id.ms == START_MS + 1
