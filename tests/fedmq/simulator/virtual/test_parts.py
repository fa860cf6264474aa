"""The engine's small parts: draws, availability, choices, downloads, training, accounts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.state import Lattice
from fedmq.simulator.virtual.account import met, participation
from fedmq.simulator.virtual.availability import Availability, read_trace
from fedmq.simulator.virtual.choosing import Chooser
from fedmq.simulator.virtual.downlink import fetched_bytes
from fedmq.simulator.virtual.draws import chance, normal
from fedmq.simulator.virtual.fleet import AvailabilityOptions, ComputeOptions, checked_fleet
from fedmq.simulator.virtual.learner import Job
from fedmq.simulator.virtual.outcome import Sample
from fedmq.simulator.virtual.plots import lorenz
from fedmq.simulator.virtual.population import Population
from fedmq.simulator.virtual.server import Server
from fedmq.simulator.virtual.training import BATCH, Bench
from schemas.errors import ConfigError
from schemas.names import DeviceId
from schemas.params import base_digest
from schemas.task import PublishOptions
from tests.aggregator.world import World, make_spec, ramp
from tests.fedmq.simulator.virtual.toy import Toy, fleet
from tests.laws import LEAN, generator


def test_draws_are_even_independent_and_the_same_every_time() -> None:
    drawn = np.array([chance(1, 2, device) for device in range(4000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.05
    assert np.std([normal(1, 2, device) for device in range(4000)]) == pytest.approx(1, abs=0.05)
    assert chance(1, 2, 3) == chance(1, 2, 3)
    assert len({chance(1, 2, 3), chance(2, 2, 3), chance(1, 3, 3), chance(1, 2, 3, 0)}) == 4


def test_every_device_is_awake_for_its_hours_at_its_own_time() -> None:
    there = Availability(AvailabilityOptions(kind="diurnal", hours=6.0), seed=3)
    hours = [[there.there(device, 3600.0 * h + 1) for h in range(24)] for device in range(300)]
    assert {sum(day) for day in hours} <= {5, 6, 7}
    by_hour = np.mean(hours, axis=0)
    assert by_hour.min() > 0.15
    assert by_hour.max() < 0.35
    together = Availability(AvailabilityOptions(kind="diurnal", hours=6.0, mornings=0.0), seed=3)
    assert all(together.there(device, 100.0) for device in range(300))
    assert not any(together.there(device, 43_200.0) for device in range(300))


def test_spans_of_a_trace_that_touch_are_one() -> None:
    spans = read_trace("device,from_s,until_s\n1,5,9\n1,0,5\n1,20,30\n", 2)
    assert spans == {1: ((0.0, 9.0), (20.0, 30.0))}
    there = Availability(AvailabilityOptions(kind="trace", trace="x"), 0, spans)
    assert [there.there(1, t) for t in (0.0, 8.9, 9.0, 20.0, 30.0)] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert not there.there(0, 5.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b,c\n",
        "device,from_s,until_s\n2,0,1\n",
        "device,from_s,until_s\n1,x\n",
        "device,from_s,until_s\n1,3,3\n",
    ],
)
def test_a_trace_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"availability\.trace"):
        read_trace(text, 2)


def test_the_wanted_are_chosen_but_for_the_share_that_explores() -> None:
    def chosen(explore: float) -> list[int]:
        chooser = Chooser(1000, lambda d, _: d % 2 == 0, lambda d, _: d + 1.0, explore, generator())
        return [found for _ in range(300) if (found := chooser.one(0.0)) is not None]

    greedy, curious = chosen(0.0), chosen(1.0)
    assert all(device % 2 == 0 for device in greedy + curious)
    assert np.mean(greedy) > 800
    assert np.mean(curious) == pytest.approx(500, abs=60)
    nobody = Chooser(1000, lambda _d, _s: False, None, 0.0, generator())
    assert nobody.one(0.0) is None
    assert nobody.some(5, 0.0) == []


def test_those_chosen_for_a_round_are_different_devices() -> None:
    chooser = Chooser(8, lambda _d, _s: True, None, 0.0, generator())
    assert sorted(chooser.some(8, 0.0)) == list(range(8))
    assert len(chooser.some(50, 0.0)) == 8


def test_in_a_small_fleet_all_who_can_be_had_are_chosen_however_they_are_wanted() -> None:
    for score in (None, lambda d, _: d + 1.0):
        ten = Chooser(10, lambda _d, _s: True, score, 0.0, generator())
        assert sorted(ten.some(10, 0.0)) == list(range(10))
        few = Chooser(1000, lambda d, _: d % 250 == 7, score, 0.0, generator())
        assert sorted(few.some(13, 0.0)) == [7, 257, 507, 757]


def test_the_only_device_of_a_small_fleet_that_can_be_had_is_always_found() -> None:
    chooser = Chooser(1000, lambda d, _: d == 613, None, 0.0, generator())
    assert [chooser.one(0.0) for _ in range(50)] == [613] * 50


def test_a_round_in_a_large_fleet_is_filled_or_nobody_is_found_at_all() -> None:
    chooser = Chooser(100_000, lambda d, _: d % 200 == 0, None, 0.0, generator())
    found = [len(chooser.some(13, 0.0)) for _ in range(40)]
    assert set(found) <= {0, 13}
    assert found.count(13) > 20


def _walked(*, lattice: bool, versions: int) -> Server:
    spec = make_spec(buffer_size=1, publish=PublishOptions(lattice=lattice))
    server, world = Server(spec, ramp()), World(spec)
    for number in range(versions):
        base = server.published.manifest
        data = world.send(
            ramp(0.01 * (number + 1)),
            epoch=server.state.epoch,
            base_version=base.version,
            base_digest=base_digest(base.model_digest),
        )
        server.arrive(float(number), DeviceId("d"), data)
    assert server.version == versions
    return server


def test_a_download_is_the_manifest_and_what_is_missing() -> None:
    whole = _walked(lattice=False, versions=3)
    manifest = whole.published.manifest
    nothing = fetched_bytes(manifest, None, 3)
    assert fetched_bytes(manifest, None, 2) == nothing + 32
    assert fetched_bytes(manifest, None, -1) == nothing + 32


def test_on_a_lattice_the_ladder_is_taken_where_it_is_shorter_than_the_keyframe() -> None:
    server = _walked(lattice=True, versions=5)
    manifest, lattice = server.published.manifest, server.state.lattice
    assert isinstance(lattice, Lattice)
    assert manifest.serial == 5
    nothing = fetched_bytes(manifest, lattice, 5)
    assert fetched_bytes(manifest, lattice, 4) == nothing + min(
        lattice.rungs[4, 0], manifest.blob_bytes
    )
    assert fetched_bytes(manifest, lattice, 0) <= nothing + manifest.blob_bytes
    lattice.rungs.clear()
    assert fetched_bytes(manifest, lattice, 4) == nothing + manifest.blob_bytes
    assert fetched_bytes(replace(manifest, oldest=5), lattice, 4) == nothing + manifest.blob_bytes


def test_jobs_that_are_needed_first_are_trained_first_and_dropped_ones_never() -> None:
    learner = Toy()
    bench, base = Bench(learner), learner.initial()
    works = [bench.put(Job(d, 0, base, 0.0), needed_s=float(200 - d)) for d in range(100)]
    bench.drop(works[99])
    bench.done(works[98])
    assert learner.batches == [BATCH]
    assert works[99].trained is None
    assert works[50].trained is not None
    assert works[10].trained is None
    assert works[98].job is None  # its base is let go
    bench.done(works[0])
    assert sum(learner.batches) == bench.trained == 99


class Classes(Toy):
    """Odd and even devices know different things."""

    def label_of(self, device: int) -> int:
        return device % 2


def test_slow_devices_know_other_classes_when_they_are_told_to() -> None:
    def speeds(part: float) -> list[float]:
        given = fleet(compute={"spread": 1.0, "slow_classes": part})
        population = Population(given, Classes())
        return [population.at(number, 0.0).speed for number in range(400)]

    for part, alike in ((1.0, True), (0.0, False)):
        odd = np.log(speeds(part)[1::2])
        assert (odd.std() < 1e-9) == alike
    assert ComputeOptions().slow_classes == 0.0
    with pytest.raises(ConfigError, match="slow_classes"):
        Population(fleet(compute={"slow_classes": 0.5}), Toy())


def test_links_are_dealt_by_their_shares() -> None:
    given = checked_fleet(fleet(links={"nb-iot": 3.0, "perfect": 1.0, "lte-m": 0.0}))
    population = Population(given, Toy())
    dealt = [population.seen(number, 0.0).unmetered for number in range(2000)]
    assert np.mean(dealt) == pytest.approx(0.25, abs=0.03)
    assert not population.known  # nobody has taken part


@LEAN
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60))
def test_shares_of_the_weight_say_who_made_the_model(weights: list[float]) -> None:
    found = participation([*weights, 0.0])
    assert found.devices == len(weights)
    assert found.most == pytest.approx(max(weights) / sum(weights))
    assert -1e-9 <= found.gini < 1
    assert sum(found.shares) == pytest.approx(1.0)
    assert found.shares == sorted(found.shares)
    assert found.most - 1e-9 <= found.top_tenth <= 1 + 1e-9


@pytest.mark.parametrize("count", [1_000, 1_001, 1_500, 4_321])
def test_of_many_devices_lorenz_curve_is_that_of_all(count: int) -> None:
    weights = [1.0 + number % 7 for number in range(count - 1)] + [3.0 * count]
    drawn_at, drawn = lorenz(participation(weights).shares)
    whole_at, whole = lorenz(sorted(weights))
    assert len(drawn) == 1001
    np.testing.assert_allclose(drawn, np.interp(drawn_at, whole_at, whole), atol=1e-9)


def test_even_weights_have_gini_0_and_one_alone_among_none_too() -> None:
    assert participation([2.0] * 10).gini == pytest.approx(0.0)
    assert participation([1e-9] * 9 + [1.0]).gini == pytest.approx(0.9)
    assert participation([]).devices == 0


@pytest.mark.parametrize(
    ("target", "values", "at"),
    [
        ({"accuracy": 0.8}, [(1, 0.7), (2, 0.81), (3, 0.9)], 1),
        ({"accuracy": 0.8}, [(1, 0.1), (2, 0.9), (3, 0.9)], None),
        ({"accuracy": 0.8}, [(1, 0.9), (2, 0.9)], None),
        ({"accuracy": 0.8}, [(1, 0.1), (2, 0.9), (2, 0.9), (2, 0.9)], None),
        ({"accuracy": 0.8}, [(1, 0.9), (2, 0.9), (2, 0.9), (2, 0.9)], None),
        ({"accuracy": 0.8}, [(1, 0.9), (2, 0.1), (2, 0.9), (5, 0.9)], 1),
        ({"accuracy": 0.8}, [(1, 0.1), (2, 0.8), (3, 0.9), (4, 0.9)], 2),
        ({"rmse": 15.0}, [(1, 20.0), (2, 14.0), (3, 11.0)], 1),
        ({"rmse": 15.0}, [(1, 20.0), (2, 20.0), (3, 11.0)], None),
        ({}, [(1, 1.0), (2, 1.0), (3, 1.0)], None),
    ],
)
def test_a_target_is_met_where_the_middle_of_three_versions_began(
    *, target: dict[str, float], values: list[tuple[int, float]], at: int | None
) -> None:
    name = next(iter(target), "accuracy")
    samples = [
        Sample(uploads, version, 0.0, 0, 0, 0.0, {name: value})
        for uploads, (version, value) in enumerate(values)
    ]
    found = met(samples, target)
    assert (None if found is None else found.uploads) == at
