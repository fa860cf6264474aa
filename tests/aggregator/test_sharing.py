from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.sharing import preferred
from schemas.names import TaskName

TOKENS = st.sets(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=1, max_size=6)
TASKS = [TaskName(f"task-{n}") for n in range(60)]


def test_nobody_is_preferred_where_nobody_is() -> None:
    assert preferred(TASKS[0], ()) is None


@LEAN
@given(tokens=TOKENS)
def test_everybody_finds_the_same_one_in_whatever_order(tokens: set[str]) -> None:
    for task in TASKS:
        assert preferred(task, sorted(tokens)) == preferred(task, sorted(tokens, reverse=True))


@LEAN
@given(tokens=TOKENS)
def test_when_one_leaves_only_its_own_tasks_move(tokens: set[str]) -> None:
    gone = min(tokens)
    for task in TASKS:
        before = preferred(task, tokens)
        if before != gone:
            assert preferred(task, tokens - {gone}) == before


def test_the_tasks_are_spread() -> None:
    held = [preferred(task, ("one", "two", "three")) for task in TASKS]
    assert all(held.count(token) >= 10 for token in ("one", "two", "three"))
