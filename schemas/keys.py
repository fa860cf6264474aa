"""Redis keys: built in one place, for the two rooms that speak Redis.

All keys of a task share the hash tag {task}, so that one script may touch them on a cluster too.
"""

from dataclasses import dataclass
from typing import Final

from schemas.names import TaskName

TASKS: Final = "fedmq:tasks"
"""Set of all task names."""

AGGREGATORS: Final = "fedmq:aggregators"
"""Sorted set: token and tasks of every aggregator -> until when it counts as alive, in ms."""

LOST: Final = "fedmq:lost"
"""Stream of what came in for no known task: bounded, for people to look at."""

LEAVING: Final = "fedmq:leaving"
"""Set of deleted tasks whose retained topics a bridge has still to clear."""

EPOCHS: Final = "fedmq:epochs"
"""Hash: a deleted task's name -> its last epoch, so that its next life has a higher one."""


@dataclass(frozen=True, slots=True)
class TaskKeys:
    """The keys of one task."""

    task: TaskName

    def _key(self, what: str) -> str:
        return f"fedmq:{{{self.task}}}:{what}"

    @property
    def log(self) -> str:
        """Stream: the log."""
        return self._key("log")

    @property
    def outbox(self) -> str:
        """Stream: what the bridge is to say."""
        return self._key("out")

    @property
    def said(self) -> str:
        """String: the id of the last outbox record that was carried out."""
        return self._key("said")

    @property
    def dead(self) -> str:
        """Stream: refused updates with reason and bytes."""
        return self._key("dead")

    @property
    def origin(self) -> str:
        """Hash: epoch, ParamSpec and initial parameters, from which the fold starts."""
        return self._key("origin")

    @property
    def checkpoint(self) -> str:
        """Hash: serial, cursor and the small part of the fold's state."""
        return self._key("checkpoint")

    @property
    def arrays(self) -> str:
        """Hash: the vectors of the fold's state."""
        return self._key("arrays")

    @property
    def windows(self) -> str:
        """Hash: device/boot -> the settled sequence numbers."""
        return self._key("windows")

    @property
    def devices(self) -> str:
        """Hash: device -> what is known of it (JSON)."""
        return self._key("devices")

    @property
    def presence(self) -> str:
        """Hash: device -> its last birth or will, and when the bridge heard it (JSON)."""
        return self._key("presence")

    @property
    def versions(self) -> str:
        """Hash: version -> its record (JSON)."""
        return self._key("versions")

    @property
    def standing(self) -> str:
        """Hash: topic below the task -> what is retained there now, beside the three below."""
        return self._key("standing")

    @property
    def spec(self) -> str:
        """String: the TaskSpec as published."""
        return self._key("spec")

    @property
    def manifest(self) -> str:
        """String: the newest manifest as published."""
        return self._key("manifest")

    @property
    def metrics(self) -> str:
        """String: the newest metrics as published."""
        return self._key("metrics")

    @property
    def blobs(self) -> str:
        """Hash: the living blobs, id -> chunk size."""
        return self._key("blobs")

    def blob(self, blob: str) -> str:
        """String: the bytes of a blob."""
        return self._key(f"blob:{blob}")

    @property
    def pressure(self) -> str:
        """String: how the bridge fared with the log when Redis was slow or full (JSON)."""
        return self._key("pressure")

    @property
    def holder(self) -> str:
        """String with a time to live: the token of the aggregator that holds the task."""
        return self._key("holder")

    @property
    def downlink(self) -> str:
        """String with a time to live: the token of the bridge that carries the outbox."""
        return self._key("downlink")

    @property
    def archived(self) -> str:
        """Hash: id and hash of the newest sealed segment, up to which the archive holds the log."""
        return self._key("archived")

    @property
    def archiving(self) -> str:
        """String with a time to live: the token of whoever writes the archive just now."""
        return self._key("archiving")

    @property
    def again(self) -> str:
        """String: somebody may have said what was overtaken; say all that is retained once more."""
        return self._key("again")

    @property
    def all(self) -> tuple[str, ...]:
        """Every key of the task but the bytes of its blobs."""
        return (
            self.log,
            self.outbox,
            self.said,
            self.dead,
            self.origin,
            self.checkpoint,
            self.arrays,
            self.windows,
            self.devices,
            self.presence,
            self.versions,
            self.standing,
            self.spec,
            self.manifest,
            self.metrics,
            self.blobs,
            self.pressure,
            self.holder,
            self.downlink,
            self.again,
            self.archived,
            self.archiving,
        )
