"""What is said where: the table of all topics below {prefix}/{task}, and what their messages are.

The contract (schemas/asyncapi.yaml) is drawn from it, and `fedmq tail` listens by it.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import msgspec

from schemas.asking import AskArray, ReplyArray
from schemas.pace import PaceHint
from schemas.task import TaskSpec
from schemas.watch import Aired, Busy, DeviceState, Event, Metrics, Versions
from schemas.wire import ManifestArray, ReceiptArray, UpdateArray

Speaker: TypeAlias = Literal["server", "device"]


@dataclass(frozen=True, slots=True)
class Channel:
    """One kind of topic.

    Attributes:
        name: of the channel, in the contract.
        suffix: the topic below the task's own level; `{...}` is one level.
        payload: the message: a Struct that is an array travels as MessagePack, any other as JSON;
            None: raw bytes.
        speaker: who publishes there.
        listeners: who reads it.
        summary: what it says, a sentence.
        retained: whether the broker keeps the last message.
    """

    name: str
    suffix: str
    payload: type[msgspec.Struct] | None
    speaker: Speaker
    listeners: str
    summary: str
    retained: bool = True

    @property
    def filter(self) -> str:
        """The MQTT filter that matches every such topic of one task, below the task's level."""
        levels = self.suffix.split("/")
        return "/".join("+" if level.startswith("{") else level for level in levels)


CHANNELS: Final = (
    Channel("spec", "spec", TaskSpec, "server", "devices", "What is trained, and how."),
    Channel(
        "model",
        "model",
        ManifestArray,
        "server",
        "devices",
        "The newest version that everybody may have.",
    ),
    Channel(
        "candidate",
        "candidate",
        ManifestArray,
        "server",
        "devices of the canary share",
        "The version that is tried first.",
    ),
    Channel(
        "pin",
        "model/{device}",
        ManifestArray,
        "server",
        "that device",
        "The version that one device is held at; empty lets it go.",
    ),
    Channel(
        "chunk",
        "blob/{blob}/{i}",
        None,
        "server",
        "devices",
        "One chunk of the parameters that a manifest names.",
    ),
    Channel(
        "busy",
        "busy",
        Busy,
        "server",
        "devices",
        "Devices should send less for a while; empty: as usual.",
    ),
    Channel(
        "pace",
        "pace",
        PaceHint,
        "server",
        "devices",
        "Which share of the fleet is to train on a model; empty: everybody.",
    ),
    Channel(
        "update",
        "up/{shard}/{device}",
        UpdateArray,
        "device",
        "the server",
        "What a device has learnt. The array is the header; zeros up to a multiple of 4 bytes and "
        "the codec's payload follow it.",
        retained=False,
    ),
    Channel(
        "receipt",
        "receipt/{device}",
        ReceiptArray,
        "server",
        "that device",
        "What became of a device's updates: the only promise.",
    ),
    Channel(
        "state",
        "state/{device}",
        DeviceState,
        "device",
        "people and the server",
        "A device's birth, farewell or will.",
    ),
    Channel(
        "ask",
        "ask/{device}",
        AskArray,
        "device",
        "the server",
        "A device asks for one diff between two publications, in place of several.",
        retained=False,
    ),
    Channel(
        "reply",
        "reply/{device}",
        ReplyArray,
        "server",
        "that device",
        "The diff that was asked for. The array is the header; the diff follows it.",
        retained=False,
    ),
    Channel(
        "lorawan",
        "lorawan",
        Aired,
        "server",
        "LoRaWAN adapters",
        "Which publications there were while an adapter looked: its next life reads it.",
    ),
    Channel("metrics", "metrics", Metrics, "server", "people", "Where the task stands."),
    Channel(
        "versions",
        "versions",
        Versions,
        "server",
        "people",
        "The versions that are kept, and how good they were found.",
    ),
    Channel(
        "events", "events", Event, "server", "people", "Something has happened.", retained=False
    ),
)
"""All of them. One may be added within wire 1; none changes its meaning."""
