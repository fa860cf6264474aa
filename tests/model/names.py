"""The task that the machine plays with: every update adds 1 to a coordinate of its own.

So the model's parameters count how often each update was folded.
"""

from typing import Final

import numpy as np

from aggregator.state import TaskState, origin_state
from schemas.codecs import CodecOptions
from schemas.log import SpecSet
from schemas.names import Epoch, TaskName
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.topics import TaskTopics

PREFIX: Final = "fedmq/v1"
TASK: Final = TaskName("model")
TOPICS: Final = TaskTopics(PREFIX, TASK)
EPOCH: Final = Epoch(1)
UPDATES: Final = 48
"""Updates in one story at most."""

SPEC: Final = TaskSpec(
    params=ParamSpec((TensorSpec("w", (UPDATES,)),)),
    strategy=StrategyOptions(
        buffer_size=1,
        flush_after_s=0.0,
        max_staleness=6,
        staleness=StalenessOptions("constant"),
    ),
    codec=CodecOptions("float32"),
    publish=PublishOptions(every=2, seconds=0.0),
)
FIRST: Final = SpecSet(spec_to_json(SPEC))


def origin() -> TaskState:
    """Where every log begins."""
    return origin_state(EPOCH, np.zeros(UPDATES, np.float32))


def delta(index: int) -> bytes:
    """The payload of the update with this number."""
    vector = np.zeros(UPDATES, np.float32)
    vector[index] = 1
    return vector.tobytes()
