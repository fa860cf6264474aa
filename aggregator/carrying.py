"""What of a strategy's state lives on when a task's specification or model is replaced.

The server's own step, `guide`, is not the strategy's: it always does.
"""

from aggregator.strategies import State
from schemas.params import Params
from schemas.strategy import StrategyOptions

GUIDE = "guide"


def carried(
    old: State, fresh: State, before: StrategyOptions | None, now: StrategyOptions
) -> State:
    """The new strategy's state after the old one's, whose buffer is empty.

    Vectors and numbers that the new strategy has under the same name are kept. What was noted of
    devices is kept only where the strategy's name is the same.
    """
    same = before is not None and before.name == now.name
    vectors = {name: old.vectors.get(name, vector) for name, vector in fresh.vectors.items()}
    scalars = {name: old.scalars.get(name, value) for name, value in fresh.scalars.items()}
    packed = dict(old.packed) if same else {}
    return State(old.version, vectors | _guide(old), scalars=scalars, packed=packed)


def begun(old: State, fresh: State) -> State:
    """The next version, begun anew from other parameters: nothing else of the old one is left."""
    return State(old.version + 1, {**fresh.vectors, **_guide(old)}, scalars=fresh.scalars)


def names_of(state: State) -> set[str]:
    """Everything of a state that is kept under a name, as a checkpoint has it."""
    return {*state.vectors, *state.packed}


def _guide(old: State) -> dict[str, Params]:
    return {GUIDE: old.vectors[GUIDE]} if GUIDE in old.vectors else {}
