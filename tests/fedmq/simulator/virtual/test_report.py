import json

import msgspec

from fedmq.simulator.virtual.outcome import Sample, final
from fedmq.simulator.virtual.report import as_json, duration, in_words, kept
from tests.fedmq.simulator.virtual.runs import run_of


def test_json_tells_the_cost_and_a_missing_figure_is_null():
    found = json.loads(json.dumps(as_json(run_of(), machine={}, peak_mib=1.0)))
    assert (found["uploads"], found["bytes_up"], found["events_per_second"]) == (75, 7500, 25.0)
    assert found["to_target"]["virtual_s"] == 2700.0
    bare = Sample(0, 0, 0.0, 0, 0, 0.0, {})
    unmeasured = msgspec.structs.replace(run_of(target=False), samples=[bare])
    assert as_json(unmeasured, machine={}, peak_mib=1.0)["accuracy"] is None


def test_a_missed_target_breaks_the_promise_and_no_target_breaks_none():
    assert kept(run_of())
    assert not kept(run_of(reached=False))
    assert kept(run_of(reached=False, target=False))
    assert "NOT reached" in in_words(run_of(reached=False))


def test_the_model_before_training_does_not_count_to_the_end():
    assert final(run_of(), "accuracy") == 0.5  # of 0.25, 0.5 and 0.75; the first was 0
    alone = msgspec.structs.replace(run_of(), samples=run_of().samples[:1])
    assert final(alone, "accuracy") == 0.0


def test_what_is_no_number_is_null_for_programs():
    nan = Sample(25, 2, 9.0, 0, 0, 0.0, {"accuracy": 0.1, "loss": float("inf")})
    samples = [run_of().samples[0], nan]
    found = as_json(msgspec.structs.replace(run_of(), samples=samples), machine={}, peak_mib=1.0)
    assert found["figures"] == {"accuracy": 0.1, "loss": None}


def test_time_is_told_in_the_unit_that_fits():
    times = [duration(s) for s in (37.4, 546.0, 9000.0, 250_560.0)]
    assert times == ["37 s", "9.1 min", "2.5 h", "2.9 days"]
