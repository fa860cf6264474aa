"""MQTT topics: built and parsed in one place. At most 7 slashes with the default prefix's 1.

`schemas.channels` is the table of all of them.
"""

import re
from dataclasses import dataclass
from typing import Final

from schemas.errors import ConfigError
from schemas.names import DeviceId, TaskName, is_name, shard_of

DEFAULT_PREFIX: Final = "fedmq/v1"
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,2}")
SHARDS: Final = frozenset("0123456789abcdef")


def checked_prefix(prefix: str) -> str:
    """Check a topic prefix: 1 to 3 levels, so that no topic has more than 7 slashes."""
    if len(prefix) > 64 or not _PREFIX.fullmatch(prefix):
        raise ConfigError("prefix", f"{prefix!r} must be 1 to 3 levels of letters, digits, _ . -")
    return prefix


@dataclass(frozen=True, slots=True)
class TaskTopics:
    """The topics of one task."""

    prefix: str
    task: TaskName

    def at(self, suffix: str) -> str:
        """The topic below the task's own level."""
        return f"{self.prefix}/{self.task}/{suffix}"

    @property
    def spec(self) -> str:
        """Retained TaskSpec."""
        return self.at("spec")

    @property
    def model(self) -> str:
        """Retained Manifest of the newest published version."""
        return self.at("model")

    @property
    def candidate(self) -> str:
        """Retained Manifest for the canary devices: newer than `model`, or the same."""
        return self.at("candidate")

    @property
    def busy(self) -> str:
        """Retained Busy: devices should send less for a while; empty: as usual."""
        return self.at("busy")

    @property
    def pace(self) -> str:
        """Retained PaceHint: which share of the fleet is to train; empty: everybody."""
        return self.at("pace")

    def pin(self, device: DeviceId) -> str:
        """Retained Manifest of the version that one device is held at."""
        return self.at(f"model/{device}")

    def chunk(self, blob: str, index: int) -> str:
        """Retained chunk of a blob."""
        return self.at(f"blob/{blob}/{index}")

    def up(self, device: DeviceId) -> str:
        """Where a device publishes its updates."""
        return self.at(f"up/{shard_of(device)}/{device}")

    def receipt(self, device: DeviceId) -> str:
        """Retained Receipt of one device."""
        return self.at(f"receipt/{device}")

    def state(self, device: DeviceId) -> str:
        """Retained birth or will of one device."""
        return self.at(f"state/{device}")

    @property
    def lorawan(self) -> str:
        """Retained note of which publications a LoRaWAN adapter has known."""
        return self.at("lorawan")

    def ask(self, device: DeviceId) -> str:
        """Where a device asks for one diff between two publications."""
        return self.at(f"ask/{device}")

    def reply(self, device: DeviceId) -> str:
        """The answer to that, for this device alone."""
        return self.at(f"reply/{device}")


@dataclass(frozen=True, slots=True)
class UplinkTopic:
    """Where an update came in. The device's identity is this level, which the ACL protects."""

    task: TaskName
    shard: str
    device: DeviceId


@dataclass(frozen=True, slots=True)
class StateTopic:
    """Where a device says whether it is there."""

    task: TaskName
    device: DeviceId


@dataclass(frozen=True, slots=True)
class AskTopic:
    """Where a device has asked for a diff; it is this level that tells who is answered."""

    task: TaskName
    device: DeviceId


def ask_filter(prefix: str) -> str:
    """The filter under which a bridge hears what devices ask."""
    return f"{prefix}/+/ask/+"


def parse_ask(prefix: str, topic: str) -> AskTopic | None:
    """Read an `ask` topic; None when it is another, or a level is not a name."""
    match topic.removeprefix(prefix + "/").split("/"):
        case [task, "ask", device] if topic.startswith(prefix + "/"):
            if is_name(task) and is_name(device):
                return AskTopic(TaskName(task), DeviceId(device))
    return None


def state_filter(prefix: str) -> str:
    """The filter under which the bridge hears who is there."""
    return f"{prefix}/+/state/+"


def parse_state(prefix: str, topic: str) -> StateTopic | None:
    """Read a `state` topic; None when it is another, or a level is not a name."""
    match topic.removeprefix(prefix + "/").split("/"):
        case [task, "state", device] if topic.startswith(prefix + "/"):
            if is_name(task) and is_name(device):
                return StateTopic(TaskName(task), DeviceId(device))
    return None


def busy_filter(prefix: str) -> str:
    """The filter under which a bridge hears what any bridge says of being busy."""
    return f"{prefix}/+/busy"


def parse_busy(prefix: str, topic: str) -> TaskName | None:
    """Read a `busy` topic: whose it is; None when it is another, or a level is not a name."""
    match topic.removeprefix(prefix + "/").split("/"):
        case [task, "busy"] if topic.startswith(prefix + "/") and is_name(task):
            return TaskName(task)
    return None


def uplink_filters(prefix: str, shards: frozenset[str] = SHARDS) -> tuple[str, ...]:
    """The filters under which a bridge hears every task's updates, of all shards or some."""
    if shards == SHARDS:
        return (f"{prefix}/+/up/+/+",)
    return tuple(f"{prefix}/+/up/{shard}/+" for shard in sorted(shards))


def read_shards(text: str) -> frozenset[str]:
    """Read `0-7,a`, or all of them from an empty text. Raises ConfigError."""
    found: set[str] = set()
    for part in text.replace(" ", "").split(",") if text.strip() else []:
        first, dash, end = part.partition("-")
        last = end if dash else first
        if not {first, last} <= SHARDS or first > last:
            raise ConfigError("shards", f"{part!r} must be hex digits, as in 0-7 or 0,3,a-f")
        found |= {shard for shard in SHARDS if first <= shard <= last}
    return frozenset(found) or SHARDS


def parse_uplink(prefix: str, topic: str) -> UplinkTopic | None:
    """Read an `up` topic; None when a level is not a name or the shard not a hex digit."""
    if not topic.startswith(prefix + "/"):
        return None
    match topic.removeprefix(prefix + "/").split("/"):
        case [task, "up", shard, device]:
            if is_name(task) and is_name(device) and shard in SHARDS:
                return UplinkTopic(TaskName(task), shard, DeviceId(device))
    return None
