"""What is read off a site's model, against the fold itself, and which sites are refused."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.staleness import polynomial
from aggregator.state import Release, Tally
from aggregator.strategies import Contribution
from aggregator.strategies.fedbuff import fedbuff
from fedmq.region.memory import remember, remembered
from fedmq.region.merging import (
    Begun,
    Cut,
    Kept,
    Since,
    begins,
    carried_over,
    check_site,
    check_tensors,
    found,
    goes_on,
    late,
    mean_weight,
    merged,
    ripe,
    settled,
)
from schemas.delta import Dense
from schemas.errors import ConfigError
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec, checked_spec, convert
from schemas.watch import ReleaseStatus
from schemas.wire import encode_manifest
from tests.laws import LEAN

SIZE = 6
SPEC = ParamSpec((TensorSpec("w", (SIZE,)),))


def release(version: int, updates: int, status: ReleaseStatus = "published") -> Release:
    manifest = Manifest(
        epoch=Epoch(1),
        version=ModelVersion(version),
        model_digest=bytes([version]) * 32,
        spec_digest=SPEC.digest,
        codec=0,
        blob=f"k1-{version}",
        blob_digest=bytes(32),
        blob_bytes=4 * SIZE,
        chunk_bytes=4096,
    )
    return Release(version, 1, encode_manifest(manifest), status, updates)


BEGUN = Begun(5, bytes([5]) * 32, b"above", 10, 8.0, 10)
CUT = Cut(7, 14, 11.0, 15)
NEXT = Begun(9, bytes([9]) * 32, b"other", 14, 11.0, 15, carried=3)


@settings(LEAN, max_examples=40)
@given(
    size=st.integers(1, 5),
    stalenesses=st.lists(st.integers(0, 9), min_size=1, max_size=17),
    flush_after=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_merged_model_has_moved_by_the_mean_of_the_weighted_deltas(
    size: int, stalenesses: Sequence[int], flush_after: int, seed: int
) -> None:
    """Whatever versions are made in between, full ones and partial ones."""
    draws = np.random.default_rng(seed)
    base = draws.standard_normal(SIZE).astype(np.float32)
    strategy = fedbuff(buffer_size=size, weigh=polynomial(0.5))
    state = strategy.init(base)
    expected = np.zeros(SIZE)
    for number, staleness in enumerate(stalenesses):
        delta = draws.standard_normal(SIZE).astype(np.float32)
        expected += (1 + staleness) ** -0.5 * delta.astype(np.float64)
        state, _ = strategy.fold(state, Contribution(0, staleness, 1, Dense(delta)), {})
        if number % flush_after == 0:
            state, _ = strategy.flush(state)
    state, _ = strategy.flush(state)
    count = len(stalenesses)
    model = merged(base, state.vectors["params"], buffer_size=size, contributions=count)
    assert model.dtype == np.float32
    np.testing.assert_allclose(model - base, expected / count, rtol=0, atol=1e-5)


def test_a_full_buffer_is_passed_on_bit_for_bit() -> None:
    base, now = np.array([0.1, 0.2], np.float32), np.array([0.7, 1e-9], np.float32)
    assert merged(base, now, buffer_size=3, contributions=3) is now


@pytest.mark.parametrize(
    ("releases", "wanted", "in_time", "version"),
    [
        ([release(5, 10), release(6, 12), release(7, 14), release(8, 16)], 4, True, 7),
        ([release(6, 12), release(7, 16)], 3, True, 7),  # the beginning is not kept any more
        ([release(5, 10), release(6, 12)], 4, True, None),
        ([release(5, 10), release(6, 12), release(7, 13)], 4, False, 7),
        ([release(5, 10)], 4, False, None),  # of nothing no update is made
        ([release(5, 10), release(6, 10)], 4, False, None),
        ([release(3, 20), release(5, 10)], 4, False, None),  # an older one is not this round's
        ([release(5, 10), release(6, 14, "held"), release(7, 15)], 4, True, 7),
        ([release(5, 13), release(6, 15)], 3, True, 5),  # so many were carried over
        ([release(5, 13)], 4, True, None),
        ([release(5, 13)], 4, False, 5),
    ],
)
def test_the_first_version_with_enough_contributions_is_taken_and_any_when_the_time_is_over(
    releases: Sequence[Release], wanted: int, *, in_time: bool, version: int | None
) -> None:
    taken = ripe(BEGUN, releases, wanted, in_time=in_time)
    assert (None if taken is None else taken.version) == version


@pytest.mark.parametrize(
    ("releases", "goes"),
    [
        ([release(4, 9), release(5, 10)], True),
        ([release(7, 14), release(8, 16)], True),
        ([release(5, 10, "withdrawn"), release(6, 11)], False),
        ([release(5, 10), release(6, 11, "withdrawn"), release(7, 12)], False),
        ([release(4, 9, "withdrawn"), release(5, 10)], True),
        ([release(1, 0)], False),  # another task of the same name
        ([], False),
    ],
)
def test_a_round_goes_on_unless_the_site_was_rolled_back(
    releases: Sequence[Release], *, goes: bool
) -> None:
    assert goes_on(BEGUN, releases) is goes


def test_a_version_of_other_parameters_is_not_the_round_that_was_begun() -> None:
    other = msgspec.structs.replace(release(6, 10), version=5)
    assert not goes_on(BEGUN, [other])


def test_the_newest_release_of_the_parameters_is_found() -> None:
    twins = [release(5, 10), msgspec.structs.replace(release(5, 12), version=7), release(8, 13)]
    again = found(twins, BEGUN.digest)
    assert again is not None
    assert again.version == 7
    assert found(twins, bytes(32)) is None


@pytest.mark.parametrize(
    ("folded", "weight", "mean"), [(14, 11.0, 0.75), (10, 8.0, 1.0), (14, 8.0, 2.0**-20)]
)
def test_the_mean_weight_is_of_what_was_folded_since(
    folded: int, weight: float, mean: float
) -> None:
    assert mean_weight(BEGUN, Tally(folded=folded, weight=weight)) == mean


@pytest.mark.parametrize(
    ("tables", "field"),
    [
        ({"strategy": {"name": "fedasync"}}, "strategy.name"),
        ({"strategy": {"server_lr": 0.5}}, "strategy.server_lr"),
        ({"strategy": {"momentum": 0.9}}, "strategy.momentum"),
        ({"strategy": {"divide_by": "weights"}}, "strategy.divide_by"),
        ({"strategy": {"contributions_max": 4}}, "strategy.contributions_max"),
        ({"strategy": {"robust": {"rule": "median"}}}, "strategy.robust"),
        ({"publish": {"every": 2}}, "publish.every"),
        ({"publish": {"lattice": True}}, "publish.lattice"),
        ({"gate": {"canary": 0.1}}, "gate"),
    ],
)
def test_a_site_whose_deltas_cannot_be_read_off_its_model_is_refused_with_a_remedy(
    tables: dict[str, object], field: str
) -> None:
    spec = convert({"params": {"tensors": [{"name": "w", "shape": [SIZE]}]}} | tables, TaskSpec)
    with pytest.raises(ConfigError, match=r"must (be|have) .*") as caught:
        check_site(spec)
    assert caught.value.field == f"the site's task: {field}"


def test_tensors_that_do_not_travel_are_refused_and_a_plain_site_gives_its_k() -> None:
    assert check_site(checked_spec(TaskSpec(SPEC))) == 10
    frozen = ParamSpec((TensorSpec("w", (SIZE,)), TensorSpec("stem", (2,), kind="frozen")))
    with pytest.raises(ConfigError, match="no local or frozen"):
        check_site(checked_spec(TaskSpec(frozen)))


@pytest.mark.parametrize("theirs", [{"w": (7,)}, {"v": (SIZE,)}, {"w": (SIZE,), "b": (1,)}, {}])
def test_other_tensors_than_the_upstreams_are_refused_by_name(
    theirs: dict[str, tuple[int, ...]],
) -> None:
    check_tensors(SPEC, {"w": np.zeros(SIZE, np.float32)})
    with pytest.raises(ConfigError, match="differ from the upstream's in"):
        check_tensors(SPEC, {name: np.zeros(shape, np.float32) for name, shape in theirs.items()})


KEPT = Kept(BEGUN, 4, told=CUT, offered=Cut(8, 16, 12.0, 16), beginning=NEXT)


def test_where_a_round_stands_is_found_again_and_rubbish_is_not_believed(tmp_path: Path) -> None:
    where = tmp_path / "fresh" / "round.json"
    assert remembered(where) is None
    for kept in (Kept(BEGUN, 0), KEPT):
        remember(where, kept)
        assert remembered(where) == kept
    remember(where, None)
    assert not where.exists()
    remember(where, None)
    for rubbish in (b"", b'{"version"', b"\xff", b'{"version":5,"digest":"","updates":1}'):
        where.write_bytes(rubbish)
        assert remembered(where) is None
    remember(None, KEPT)
    assert remembered(None) is None


def test_the_outbox_tells_whether_an_update_that_was_offered_was_taken() -> None:
    assert settled(KEPT, 4) == dataclasses.replace(KEPT, offered=None)
    taken = settled(KEPT, 5)
    assert taken is not None
    assert (taken.told, taken.offered, taken.created) == (KEPT.offered, None, 5)
    assert settled(taken, 5) == taken


@pytest.mark.parametrize("created", [0, 3, 6])
def test_of_an_outbox_that_took_what_nobody_knows_of_nothing_is_believed(created: int) -> None:
    assert settled(KEPT, created) is None
    assert settled(Kept(BEGUN, 4, told=CUT), 5) is None, "without an offer"


@pytest.mark.parametrize(
    ("releases", "version", "has"),
    [
        ([release(8, 14), release(9, 17)], 9, True),
        ([release(9, 17), release(12, 20)], 12, True),
        ([release(8, 14)], 8, False),
        ([release(8, 14), msgspec.structs.replace(release(8, 15), version=9)], 9, False),
        ([release(10, 18)], 10, None),  # the site kept too few to tell
    ],
)
def test_whether_a_round_has_begun_is_read_off_the_site(
    releases: Sequence[Release], version: int, *, has: bool | None
) -> None:
    assert begins(NEXT, releases, version) is has


def test_what_came_since_is_counted_by_the_site() -> None:
    since = Since(BEGUN, CUT, None)
    assert [late(since, folded) for folded in (13, 14, 17)] == [0, 0, 3]
    assert late(None, 17) == 0


@settings(LEAN, max_examples=40)
@given(
    size=st.integers(1, 4),
    flush_after=st.integers(2, 5),
    before=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    between=st.lists(st.integers(0, 5), max_size=7),
    after=st.lists(st.integers(0, 5), max_size=6),
    seed=st.integers(0, 99),
)
def test_what_comes_between_two_rounds_goes_up_with_the_weights_of_the_fold(
    *,
    size: int,
    flush_after: int,
    before: Sequence[int],
    between: Sequence[int],
    after: Sequence[int],
    seed: int,
) -> None:
    """In versions or in the buffer; whatever the upstream's models are."""
    draws = np.random.default_rng(seed)
    strategy = fedbuff(buffer_size=size, weigh=polynomial(0.5))
    old, new = draws.standard_normal((2, SIZE)).astype(np.float32)
    state, expected = strategy.init(old), np.zeros(SIZE)

    def come(stalenesses: Sequence[int]) -> None:
        nonlocal state
        for number, staleness in enumerate(stalenesses):
            delta = draws.standard_normal(SIZE).astype(np.float32)
            expected[:] += (1 + staleness) ** -0.5 * delta.astype(np.float64)
            state, _ = strategy.fold(state, Contribution(0, staleness, 1, Dense(delta)), {})
            if number % flush_after == 1:
                state, _ = strategy.flush(state)

    come(before)
    state, _ = strategy.flush(state)
    told = state.vectors["params"].copy()
    expected[:] = 0.0
    come(between)
    model = carried_over(
        new, told, state.vectors["params"], state.vectors["total"], buffer_size=size
    )
    assert model.dtype == np.float32
    state = strategy.init(model)
    come(after)
    state, _ = strategy.flush(state)
    count = len(between) + len(after)
    if count:
        up = merged(new, state.vectors["params"], buffer_size=size, contributions=count)
        np.testing.assert_allclose(up - new, expected / count, rtol=0, atol=1e-5)
    else:
        np.testing.assert_allclose(model, new, rtol=0, atol=1e-6)


def test_of_more_than_an_update_takes_the_mean_is_carried_over() -> None:
    zero, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    model = carried_over(zero, zero, 2 * ones, 4 * ones, buffer_size=2, share=0.25)
    np.testing.assert_array_equal(model, ones)
