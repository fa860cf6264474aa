"""Settings of `fedmq aggregator`."""

from typing import Annotated

import msgspec

from schemas.names import task_name

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class AggregatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One aggregator process.

    Attributes:
        redis_url: where the log is.
        tasks: comma-separated names; empty serves every task.
        lease_s: how long a silent aggregator keeps its tasks.
        log_keep_s: entries older than this are trimmed once folded; 0 keeps all.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    tasks: str = ""
    lease_s: _Seconds = 5.0
    log_keep_s: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks to serve. Raises ConfigError."""
        return tuple(task_name(t.strip()) for t in self.tasks.split(",") if t.strip())
