"""Every strategy through a checkpoint: a crash anywhere gives the same bits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LEAN

from aggregator.fold import Fold, origin_state
from schemas.strategy import RobustOptions, StalenessOptions
from tests.aggregator.test_fold import random_world
from tests.aggregator.world import EPOCH, Store, image, make_spec, ramp

PAPER = {"staleness": StalenessOptions(), "flush_after_s": 0.05}

EVERY = {
    "fedbuff": make_spec(buffer_size=3, momentum=0.9, fairness=1.0, **PAPER),
    "fedbuff by weights": make_spec(buffer_size=3, divide_by="weights", **PAPER),
    "fedbuff behind a guard": make_spec(
        buffer_size=2, robust=RobustOptions(max_norm=3.0, guard="aflguard"), **PAPER
    ),
    "fedbuff with rows": make_spec(buffer_size=2, robust=RobustOptions(clip="median"), **PAPER),
    "fedbuff with a centre": make_spec(
        buffer_size=5, robust=RobustOptions(rule="centered-clipping", mix="nearest"), **PAPER
    ),
    "fedasync": make_spec(name="fedasync", views=3, **PAPER),
    "fadas": make_spec(name="fadas", buffer_size=3, **PAPER),
    "fadas with rows": make_spec(
        name="fadas", buffer_size=3, robust=RobustOptions(clip="median"), **PAPER
    ),
    "ca2fl": make_spec(name="ca2fl", buffer_size=3, server_lr=0.5, **PAPER),
    "ca2fl of sparse ones": make_spec(name="ca2fl", buffer_size=2, codec="topk_int8", **PAPER),
    "fedfa": make_spec(name="fedfa", buffer_size=3, views=3, fairness=0.5, **PAPER),
    "fedavg": make_spec(name="fedavg", buffer_size=3, momentum=0.5, **PAPER),
    "fedadam": make_spec(name="fedadam", buffer_size=3, **PAPER),
}


def crashed_at_random(world, rng):
    """Fold a world's log once more, with commits and losses of what was not committed."""
    store, fold = Store(), Fold(origin_state(EPOCH, ramp()))
    store.commit(fold)
    store.vectors = {name: v.tobytes() for name, v in fold.state.model.vectors.items()}
    done = 0
    while done < len(world.log):
        until = min(len(world.log), done + rng.randrange(1, 9))
        fold.apply_all(world.log[done:until])
        if rng.random() < 0.6:
            store.commit(fold)
            done = until
        if rng.random() < 0.6 or done < until:
            fold = store.load()
    return store.load().state


def stays_the_same(seed, specs):
    world = random_world(seed, 40, specs)
    assert image(crashed_at_random(world, random.Random(seed))) == image(world.state)


@pytest.mark.parametrize("name", EVERY)
@settings(LEAN, max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_a_crash_anywhere_gives_the_same_bits(name, seed):
    stays_the_same(seed, [EVERY[name]])


@settings(LEAN, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_and_so_it_does_when_the_task_changes_from_one_to_another(seed):
    stays_the_same(seed, list(EVERY.values()))
