"""Who is compared, and at how many bytes."""

from typing import Final

from benchmarks.learning.fleet import Way
from benchmarks.learning.study import Model
from benchmarks.learning.timeline import Fault

BUDGETS: Final = (39, 103, 210, 500)
"""Bytes of a payload."""

FILLING: Final = ("sq", "stc", "eden", "qsgd")
"""Codecs that fill a budget."""

FLOAT32: Final = Way("float32")

FIXED: Final = (
    FLOAT32,
    Way("float16"),
    Way("int8"),
    Way("sign"),
    Way("topk_int8"),
    Way("stc"),
    Way("dropout", 500),
    Way("qsgd"),
    Way("eden"),
)
"""Each at the size it takes by itself; top-k and STC of 1 %."""

FAULTY: Final[tuple[Fault, ...]] = ("lost", "doubled", "late", "stale")

FAULTED: Final = (
    FLOAT32,
    Way("float16"),
    Way("int8"),
    Way("sign"),
    Way("topk_int8"),
    *(Way(name, 103) for name in FILLING),
    Way("dropout", 500),
)

MODELS: Final[tuple[Model, ...]] = ("small", "cnn", "turbofan", "big")


BUDGETS_OF: Final[dict[Model, tuple[int, ...]]] = {
    "small": BUDGETS,
    "cnn": BUDGETS[1:3],
    "turbofan": BUDGETS[1:3],
    "big": BUDGETS[1:],
}
"""Below 103 bytes 100,000 parameters learn too little to be compared."""


def filling(model: Model) -> tuple[Way, ...]:
    """Every codec that fills a budget, at every budget of a model."""
    return tuple(Way(name, budget) for budget in BUDGETS_OF[model] for name in FILLING)


def ways_of(model: Model) -> tuple[Way, ...]:
    """All that are compared on a model."""
    match model:
        case "small":
            return (*FIXED, *filling(model))
        case "big":
            return (FLOAT32, Way("int8"), Way("topk_int8"), *filling(model))
        case _:
            return (FLOAT32, Way("topk_int8"), *filling(model))
