from fedmq.simulator.virtual import compare
from tests.fedmq.simulator.virtual.runs import run_of


def test_the_table_says_never_where_the_target_was_missed():
    runs = [run_of("a"), run_of("b", reached=False)]
    rows = compare.rows(runs)
    assert [len(row) for row in rows] == [len(compare.columns(runs))] * 2
    assert rows[0][:3] == ("a", "75", "7.50 kB")
    assert rows[1][:3] == ("b", "never", "never")


def test_side_by_side_every_line_is_as_long_as_the_others():
    title, *lines = compare.side_by_side([run_of("a"), run_of("b", reached=False)]).splitlines()
    assert title == "spent to accuracy 70.0%:"
    assert lines[0].split() == ["fleet", "a", "b"]
    assert len({len(line) for line in lines}) == 1
    runs = [run_of("a", target=False), run_of("b", target=False)]
    assert compare.side_by_side(runs).startswith("spent to the end of the run:")
