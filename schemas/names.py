"""Names and numbers that identify things; never a bare `str` or `int` in a signature."""

import re
from hashlib import sha256
from typing import Final, NewType

from schemas.errors import ConfigError

DeviceId = NewType("DeviceId", str)
TaskName = NewType("TaskName", str)
ModelVersion = NewType("ModelVersion", int)
Boot = NewType("Boot", int)  # uint32, drawn for every life of the device: an old card is a new boot
Seq = NewType("Seq", int)  # uint32, from 1, within a boot
Epoch = NewType("Epoch", int)  # uint16, from 1; raised when a task's log is re-created or restored

NAME_PATTERN: Final = "[a-z0-9_-]{1,48}"
_NAME: Final = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Tell whether `text` may stand as a task, device or blob name in a topic."""
    return _NAME.fullmatch(text) is not None


def _checked(field: str, text: str) -> str:
    if not is_name(text):
        raise ConfigError(field, f"{text!r} must be 1 to 48 of a-z, 0-9, '_' and '-'; rename it")
    return text


def device_id(text: str) -> DeviceId:
    """Check a device's name. Raises ConfigError."""
    return DeviceId(_checked("device", text))


def task_name(text: str) -> TaskName:
    """Check a task's name. Raises ConfigError."""
    return TaskName(_checked("task", text))


def shard_of(device: DeviceId) -> str:
    """Give the shard level of a device's `up` topic: the first hex digit of SHA-256(device)."""
    return sha256(device.encode()).hexdigest()[0]


def in_canary(device: DeviceId, share: float) -> bool:
    """Tell whether a device belongs to the share of the fleet that gets new versions first.

    Bytes 4 to 8 of SHA-256(device) as a number, over 2^32, are below the share: a device that
    belongs to a small share belongs to every larger one.
    """
    return int.from_bytes(sha256(device.encode()).digest()[4:8], "big") < share * 2**32
