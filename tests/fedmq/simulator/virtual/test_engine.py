"""The engine: same seed, same run; slots, rounds and sleepers; the very fold of production."""

from heapq import heappush
from pathlib import Path
from statistics import fmean

import msgspec
import pytest

from aggregator.fold import Fold
from aggregator.state import origin_state
from fedmq.simulator.virtual import engine
from fedmq.simulator.virtual.engine import run
from fedmq.simulator.virtual.fleet_file import Progress
from fedmq.simulator.virtual.outcome import Outcome, with_wall
from fedmq.simulator.virtual.population import Population
from fedmq.simulator.virtual.server import EPOCH, refold
from schemas.codecs import CodecOptions
from schemas.errors import ConfigError
from schemas.log import Arrived, Entry, Tick
from schemas.pace import PaceOptions, Select
from schemas.params import model_digest
from schemas.task import FinishOptions, PublishOptions
from tests.fedmq.simulator.virtual.toy import Toy, fleet, outcome, task

SLOTS = {"mode": "slots", "concurrency": 40}


def timeless(found: Outcome) -> Outcome:
    return with_wall(found, 0.0)


@pytest.mark.parametrize("mode", ["free", "slots", "rounds"])
def test_the_same_seed_is_the_same_outcome_and_another_is_another(mode: str) -> None:
    tasks = task(max_staleness=0) if mode == "rounds" else task()
    part = {"mode": mode, "concurrency": 20, "lost": 0.1}
    links = {"nb-iot": 1, "wifi-bad": 2}
    given = fleet(tasks, participation=part, links=links, stop={"uploads": 120}, seed=4)
    first, again = outcome(given), outcome(given)
    other = outcome(msgspec.structs.replace(given, seed=5))
    assert timeless(first) == timeless(again)
    assert first.wall_s > 0
    assert first.digest != other.digest
    assert first.samples[-1].virtual_s != other.samples[-1].virtual_s


def test_a_fleet_learns_and_stops_at_its_target() -> None:
    stop = {"uploads": 5000, "target": {"accuracy": 0.99}}
    found = outcome(fleet(participation=SLOTS, stop=stop))
    assert found.reached is not None
    assert found.reached == found.samples[-2], "where the middle of three versions was measured"
    assert found.reached.uploads < 5000
    assert found.samples[0].figures["accuracy"] == 0.0


def test_staleness_is_about_concurrency_by_buffer() -> None:
    part = {"mode": "slots", "concurrency": 60}
    stop = {"uploads": 1500}
    found = outcome(fleet(participation=part, stop=stop, devices=2000))
    assert found.staleness_mean == pytest.approx(60 / 5, rel=0.15)
    assert sum(found.staleness.values()) == found.outcomes["folded"]


def test_lost_updates_and_dead_ends_hold_their_slots_no_longer_than_the_lease() -> None:
    part = {"mode": "slots", "concurrency": 4, "lost": 0.2, "lease_s": 30.0}
    found = outcome(fleet(participation=part, stop={"uploads": 300, "seconds": 1e6}))
    assert found.samples[-1].uploads == 300
    assert 30 <= found.outcomes["lost"] <= 90
    assert found.outcomes["folded"] >= 200


def test_an_expired_lease_frees_the_slot_and_the_late_update_is_folded_as_stale_as_it_is() -> None:
    part = {"mode": "slots", "concurrency": 10, "lease_s": 4.0}
    kept = {"mode": "slots", "concurrency": 10, "lease_s": 1e6}
    compute = {"steps_per_second": 10.0, "spread": 1.0}
    stop = {"uploads": 600}
    short = outcome(fleet(participation=part, compute=compute, stop=stop, devices=5000))
    long = outcome(fleet(participation=kept, compute=compute, stop=stop, devices=5000))
    assert short.outcomes.keys() == long.outcomes.keys()
    assert short.outcomes["folded"] >= 590
    assert short.staleness_mean > 1.2 * long.staleness_mean
    assert short.samples[-1].virtual_s < long.samples[-1].virtual_s


def test_a_slot_that_becomes_free_is_given_on_though_for_another_nobody_was_found(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n0,0,1000\n1,500,1000\n")
    there = {"kind": "trace", "trace": str(trace)}
    part, stop = {"mode": "slots", "concurrency": 3}, {"seconds": 59.0}
    found = outcome(fleet(devices=3, availability=there, participation=part, stop=stop))
    assert found.samples[-1].uploads > 10


def test_nothing_is_planned_beyond_one_event_a_device_that_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = []

    def push(heap: list[object], item: object) -> None:
        heappush(heap, item)  # type: ignore[type-var]  # tuples of the engine's, which compare
        longest.append(len(heap))

    monkeypatch.setattr(engine, "heappush", push)
    tasks = msgspec.structs.replace(task(flush_after_s=1.0), finish=FinishOptions(seconds=1e6))
    part = {"mode": "slots", "concurrency": 10, "lease_s": 1e5}
    found = outcome(fleet(tasks, participation=part, stop={"uploads": 500}))
    assert found.outcomes["folded"] > 480
    assert max(longest) <= 10


def test_a_task_whose_time_is_over_ends_though_nobody_has_ever_come(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n3,5000,6000\n")
    there = {"kind": "trace", "trace": str(trace), "period_s": 100.0}
    tasks = msgspec.structs.replace(task(), finish=FinishOptions(seconds=250.0))
    found = outcome(fleet(tasks, availability=there, stop={"seconds": 1e4}))
    assert found.samples[-1].virtual_s == pytest.approx(250.0, abs=0.1)


def test_a_sample_is_of_the_model_after_the_fold() -> None:
    tables = {"participation": {"mode": "slots", "concurrency": 1}, "measure": {"every": 3}}
    found = outcome(fleet(task(buffer_size=1), stop={"uploads": 30}, **tables))
    assert [(s.uploads, s.version) for s in found.samples[:4]] == [(0, 0), (3, 3), (6, 6), (9, 9)]


def test_a_target_that_nobody_measures_is_refused_before_anything_happens() -> None:
    told: list[Progress] = []
    with pytest.raises(ConfigError, match="accuracy and loss") as refused:
        run(fleet(stop={"target": {"rmse": 3.0}}), Toy(), told.append)
    assert refused.value.field == "stop.target.rmse"
    assert len(told) == 1


def test_free_devices_that_have_never_trained_are_drawn_by_what_they_know_of_themselves() -> None:
    def cheap(select: Select) -> float:
        pace = PaceOptions(10, select=select, explore=0.0)
        tasks = msgspec.structs.replace(task(flush_after_s=600.0), pace=pace)
        tables = {"links": {"perfect": 1, "nb-iot": 1}, "availability": {"period_s": 60.0}}
        given = fleet(tasks, devices=3000, stop={"uploads": 1200}, **tables)
        log: list[Entry] = []
        outcome(given, log=log)
        there = Population(given, Toy())
        names = [entry.body.device for entry in log if isinstance(entry.body, Arrived)]
        late = names[len(names) // 2 :]  # at first all are asked
        return fmean(there.seen(int(name[1:]), 0.0).unmetered for name in late)

    assert cheap("any") == pytest.approx(0.5, abs=0.1)
    assert cheap("link") > 0.7


def test_a_round_folds_exactly_its_buffer_and_refuses_whoever_is_late() -> None:
    part = {"mode": "rounds", "over_selection": 1.6, "deadline_s": 1e5}
    given = fleet(task(max_staleness=0), participation=part, stop={"versions": 12})
    log: list[Entry] = []
    found = outcome(given, log=log)
    assert found.version == 12
    assert found.outcomes["folded"] == 12 * 5
    assert found.outcomes["too_stale"] > 0
    assert found.staleness == {0: 60}
    assert not any(isinstance(entry.body, Tick) for entry in log)


def test_a_round_is_over_by_its_deadline() -> None:
    part = {"mode": "rounds", "over_selection": 1.0, "deadline_s": 50.0, "lost": 0.4}
    given = fleet(task(max_staleness=0), participation=part, stop={"versions": 8, "seconds": 1e5})
    log: list[Entry] = []
    found = outcome(given, log=log)
    assert found.version == 8
    assert any(isinstance(entry.body, Tick) for entry in log)
    assert found.outcomes["folded"] < 8 * 5


def test_a_round_in_which_nothing_arrives_is_given_up_at_its_deadline() -> None:
    part = {"mode": "rounds", "over_selection": 1.0, "deadline_s": 50.0, "lost": 1.0}
    found = outcome(fleet(task(max_staleness=0), participation=part, stop={"uploads": 20}))
    assert found.outcomes == {"lost": 20}
    assert found.samples[-1].virtual_s > 3 * 50.0


def test_only_devices_that_take_part_are_ever_made() -> None:
    learner = Toy()
    stop = {"uploads": 150}
    found = outcome(fleet(devices=100_000, stop=stop), learner)
    assert len(learner.asked) <= 400
    assert found.participation.devices <= 150
    assert found.events < 1000


def test_training_is_batched_and_none_is_trained_twice() -> None:
    learner = Toy()
    found = outcome(fleet(participation=SLOTS), learner)
    assert sum(learner.batches) == found.trained
    assert max(learner.batches) > 8
    assert found.trained <= 200 + 40


def test_without_news_a_free_device_does_not_train_on_the_same_model_again() -> None:
    tasks = task(buffer_size=1000)
    found = outcome(fleet(tasks, devices=20, stop={"seconds": 86_400.0}))
    assert found.outcomes == {"folded": 20}


def test_the_hint_turns_a_free_fleet_down_to_the_concurrency_asked_for() -> None:
    tasks = task(flush_after_s=600.0)
    paced = msgspec.structs.replace(tasks, pace=msgspec.structs.replace(tasks.pace, concurrency=10))
    there, stop = {"period_s": 60.0}, {"uploads": 2500}
    free = outcome(fleet(tasks, devices=2000, availability=there, stop=stop))
    held = outcome(fleet(paced, devices=2000, availability=there, stop=stop))
    assert free.staleness_mean > 8
    assert held.staleness_mean < 0.7 * free.staleness_mean
    assert held.outcomes["folded"] > 2000


def test_who_leaves_comes_back_as_somebody_else() -> None:
    there = {"churn_per_day": 24.0, "period_s": 1800.0}
    log: list[Entry] = []
    found = outcome(fleet(devices=10, availability=there, stop={"seconds": 5e4}), log=log)
    assert found.outcomes["folded"] > 50
    names = {entry.body.device for entry in log if isinstance(entry.body, Arrived)}
    assert len(names) == 10
    fold = Fold(origin_state(EPOCH, Toy().initial()))
    fold.apply_all(log)
    assert len(fold.state.windows) > 20  # spools
    assert fold.state.tally.duplicates == 0


def test_an_empty_battery_ends_a_device_and_a_charged_one_goes_on() -> None:
    # a round takes 20 steps at 10 a second and 2 W: 4 J and the radio; a battery lasts for 4
    energy = {"battery_j": 18.0}
    compute = {"spread": 0.0}
    stop = {"seconds": 2 * 86_400.0}
    given = fleet(devices=30, energy=energy, compute=compute, stop=stop)
    dying = outcome(given)
    assert dying.dead == 30
    assert dying.outcomes["folded"] == 30 * 4
    charging = outcome(
        fleet(devices=30, compute=compute, stop=stop, energy=energy | {"charge_hours": 4.0})
    )
    assert charging.outcomes["folded"] > 2 * 30 * 4


def test_sleeping_radios_pay_for_the_lattice_less_than_for_whole_models() -> None:
    whole = task()
    walked = msgspec.structs.replace(
        whole, publish=PublishOptions(lattice=True), codec=CodecOptions("sq"), uplink="64 B"
    )
    dear = outcome(fleet(whole, participation=SLOTS, links={"lora-dr5": 1}))
    cheap = outcome(fleet(walked, participation=SLOTS, links={"lora-dr5": 1}))
    assert cheap.outcomes["folded"] > 100
    assert cheap.outcomes["lost"] > 0  # one frame in ten
    assert cheap.samples[-1].bytes_up <= 64 * cheap.samples[-1].uploads
    assert cheap.samples[-1].bytes_up < dear.samples[-1].bytes_up


def test_bytes_a_day_hold_a_fleet_back() -> None:
    narrow = msgspec.structs.replace(task(), uplink="400 B/day")
    there, stop = {"period_s": 600.0}, {"seconds": 86_400.0}
    free = outcome(fleet(devices=20, availability=there, stop=stop))
    held = outcome(fleet(narrow, devices=20, availability=there, stop=stop))
    assert held.samples[-1].bytes_up <= 20 * (2 * 400 + 64)
    assert held.samples[-1].uploads < free.samples[-1].uploads / 5


@pytest.mark.parametrize("select", ["battery", "link", "utility", "fair"])
def test_a_slot_goes_to_who_is_wanted(select: str) -> None:
    plain = task()
    pace = msgspec.structs.replace(plain.pace, select=select, explore=0.0)
    wished = msgspec.structs.replace(plain, pace=pace)
    tables = {
        "participation": {"mode": "slots", "concurrency": 10},
        "links": {"perfect": 1, "nb-iot": 1},
        "devices": 60,
        "stop": {"uploads": 400},
        "energy": {"battery_j": 1500.0, "train_w": 50.0},
    }
    any_one, chosen = outcome(fleet(plain, **tables)), outcome(fleet(wished, **tables))
    if select == "battery":
        assert chosen.dead < 0.7 * any_one.dead
    if select == "fair":
        assert chosen.participation.gini < 0.6 * any_one.participation.gini
    if select == "link":
        assert chosen.participation.devices < 0.8 * any_one.participation.devices
    assert chosen.digest != any_one.digest


def test_a_trace_says_who_can_be_had_and_when(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("device,from_s,until_s\n3,1000,2000\n7,1500,4000\n")
    there = {"kind": "trace", "trace": str(trace), "period_s": 100.0}
    log: list[Entry] = []
    outcome(fleet(task(buffer_size=1), availability=there, stop={"seconds": 1e4}), log=log)
    arrived = [(e.id.ms, e.body.device) for e in log if isinstance(e.body, Arrived)]
    assert {name for _, name in arrived} == {"d3", "d7"}
    assert arrived[0][0] > 1_000_000
    assert arrived[-1][0] < 4_100_000


def test_whoever_watches_is_told_of_every_sample() -> None:
    told: list[Progress] = []
    found = run(fleet(), Toy(), told.append)
    assert [p.uploads for p in told] == [s.uploads for s in found.samples]
    assert {p.of for p in told} == {200}
    assert told[-1].version == found.version


@pytest.mark.parametrize("lattice", [False, True])
def test_the_log_of_a_run_folded_plainly_gives_the_same_versions(*, lattice: bool) -> None:
    tasks = msgspec.structs.replace(
        task(flush_after_s=3.0), publish=PublishOptions(lattice=lattice), codec=CodecOptions("sq")
    )
    log: list[Entry] = []
    found = outcome(fleet(tasks, participation=SLOTS | {"lost": 0.1}), log=log)
    fold = Fold(origin_state(EPOCH, Toy().initial()))
    fold.apply_all(log)
    assert fold.state.published is not None
    assert fold.state.published.named.model_digest.hex()[:16] == found.digest
    assert fold.state.tally.folded == found.outcomes["folded"]
    assert refold(log, Toy().initial())[-1] == (found.version, found.digest)
    if not lattice:
        params = fold.state.model.vectors["params"]
        assert model_digest(Toy().spec.digest, params).hex()[:16] == found.digest
