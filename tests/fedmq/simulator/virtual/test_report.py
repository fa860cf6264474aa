import json

import msgspec
import pytest

from fedmq.simulator.virtual import compare
from fedmq.simulator.virtual.outcome import Outcome, Participation, Sample
from fedmq.simulator.virtual.plots import draw, lorenz
from fedmq.simulator.virtual.report import as_json, in_words, kept


def run_of(name="a", *, reached=True, target=True):
    samples = [
        Sample(n, n // 10, 36.0 * n, 100 * n, 200 * n, 2.0 * n, {"accuracy": n / 100})
        for n in range(0, 100, 25)
    ]
    return Outcome(
        name=name,
        devices=20,
        seed=1,
        samples=samples,
        target={"accuracy": 0.7} if target else {},
        reached=samples[-1] if reached else None,
        version=7,
        digest="0123456789abcdef",
        staleness={0: 3, 2: 1},
        staleness_mean=0.5,
        outcomes={"folded": 4, "lost": 1},
        participation=Participation(4, 0.4, 0.4, 0.25, [0.1, 0.2, 0.3, 0.4]),
        dead=0,
        trained=5,
        events=50,
        wall_s=2.0,
    )


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


def test_the_table_says_never_where_the_target_was_missed():
    runs = [run_of("a"), run_of("b", reached=False)]
    rows = compare.rows(runs)
    assert [len(row) for row in rows] == [len(compare.columns(runs))] * 2
    assert rows[0][:3] == ("a", "75", "7.50 kB")
    assert rows[1][:3] == ("b", "never", "never")


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = draw(tmp_path / "plots", [run_of("a"), run_of("b", reached=False)])
    assert all(path.stat().st_size > 5_000 for path in drawn)


def test_lorenz_begins_at_nothing_and_ends_at_all():
    devices, weight = lorenz([1.0, 3.0])
    assert devices == [0.0, 0.5, 1.0]
    assert weight == [0.0, 0.25, 1.0]
