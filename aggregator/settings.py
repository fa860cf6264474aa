"""Settings of `fedmq aggregator`."""

from typing import Annotated, Literal

import msgspec

from schemas.names import task_name
from schemas.task import Option

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class JudgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who measures a task's versions on the server: `[aggregator.evaluate.TASK]`.

    Attributes:
        evaluator: `module:Class`; made once, then asked `evaluate(tensors)` for every version.
        options: what its constructor is given.
    """

    evaluator: str
    options: dict[str, Option] = {}


class AggregatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One aggregator process.

    Attributes:
        redis_url: where the log is.
        tasks: comma-separated names; empty serves every task.
        lease_s: how long a silent aggregator keeps its tasks.
        after_failover: when Sentinel has replaced Redis' primary: `epoch` raises the task's epoch,
            because what the old one had promised may be lost; `keep` does not, because the bridges
            wait for replicas ([bridge].wait_replicas) before they pass a promise on.
        log_keep_s: entries older than this are trimmed once folded; 0 keeps all.
        log_keep_bytes: the oldest folded entries are trimmed above this size; 0 keeps all.
        dead_keep_s: dead letters older than this are deleted; 0 keeps all.
        dead_keep_bytes: the oldest dead letters are deleted above this size; 0 keeps all.
        versions_keep: records of so many versions are kept.
        archive_url: where the folded log is kept for ever: a folder, or s3://bucket/prefix with its
            fsspec backend; empty: nowhere.
        archive_bytes: a segment is sealed when so many bytes were folded.
        archive_seconds: or after so long.
        evaluate: task -> who measures its versions on the server's own held-out set.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    tasks: str = ""
    lease_s: _Seconds = 5.0
    after_failover: Literal["epoch", "keep"] = "epoch"
    log_keep_s: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0
    log_keep_bytes: _Bytes = 256 << 20
    dead_keep_s: Annotated[float, msgspec.Meta(ge=0)] = 30 * 86_400.0
    dead_keep_bytes: _Bytes = 16 << 20
    versions_keep: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    archive_url: str = ""
    archive_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 28)] = 4 << 20
    archive_seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 300.0
    evaluate: dict[str, JudgeSettings] = {}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks to serve. Raises ConfigError."""
        return tuple(task_name(t.strip()) for t in self.tasks.split(",") if t.strip())
