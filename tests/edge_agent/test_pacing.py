"""What one device makes of a hint, and of its own speed."""

import msgspec

from edge_agent.pacing import Pacer
from edge_agent.trainer import TrainResult
from schemas.pace import SCORE, Facts, PaceHint, PaceOptions
from schemas.task import TrainOptions

PACE = PaceOptions(concurrency=10, lease_s=100.0)


def test_who_has_heard_no_hint_trains_on_every_model():
    assert Pacer("pump-1").waits_s(PACE, (1, 1), 0.0, Facts()) == 0.0


def test_who_is_not_drawn_waits_for_the_lease_and_is_drawn_in_the_end():
    pacer = Pacer("pump-1")
    pacer.hint = PaceHint(1e-4)
    assert pacer.waits_s(PACE, (1, 1), 50.0, Facts()) == 100.0
    assert pacer.waits_s(PACE, (1, 1), 90.0, Facts()) == 60.0
    assert pacer.waits_s(PACE, (1, 1), 150.0, Facts()) == 100.0
    assert pacer.waits_s(PACE, (1, 1), 50.0 + 14 * 100.0, Facts()) == 0.0
    assert pacer.waits_s(PACE, (1, 2), 1e4, Facts()) == 100.0, "another base, another lease"
    off = msgspec.structs.replace(PACE, concurrency=0)
    assert pacer.waits_s(off, (1, 2), 1e4, Facts()) == 0.0


def test_it_makes_as_many_steps_as_it_can_in_the_time():
    pace = PaceOptions(seconds=10.0, steps_min=2, steps_max=500)
    pacer, train = Pacer("pump-1"), TrainOptions(epochs=2, batch_size=10)
    assert pacer.asked(pace, train) == train, "its speed is not known yet"
    pacer.trained(train, TrainResult({}, 95), 5.0)  # 20 steps: 4 a second
    asked = pacer.asked(pace, train)
    assert (asked.steps, asked.epochs) == (40, 4)
    pacer.trained(asked, TrainResult({}, 95), 5.0)  # 8 a second
    assert pacer.asked(pace, train).steps == 52
    assert Pacer("x").asked(PaceOptions(), train) == train
    pacer.trained(train, TrainResult({}, 95, {"steps": 1e6}), 1.0)
    assert pacer.asked(pace, train).steps == 500


def test_a_score_is_sent_only_where_it_selects():
    pacer = Pacer("pump-1")
    pacer.trained(TrainOptions(), TrainResult({}, 10, {"loss_before": 2.0}), 1.0)
    assert pacer.metrics(PACE) == {}
    assert pacer.metrics(msgspec.structs.replace(PACE, select="utility")) == {SCORE: 20.0}
    assert pacer.metrics(msgspec.structs.replace(PACE, select="battery")) == {}
