"""Settings of `fedmq-agent`."""

from typing import Annotated

import msgspec

from mqtt_session.settings import MqttSettings
from schemas.conditions import Conditions
from schemas.names import device_id, task_name
from schemas.task import Option


class AgentSettings(MqttSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device in one task.

    Attributes:
        device: this device's name; also its MQTT client id.
        task: the task to take part in.
        trainer: `module:Class` of the Trainer; empty: the task's bundle is trained on `data`.
        data: what a bundle is trained on: FILE.csv, FILE.npz, FILE.parquet, a folder of those,
            `module:function` that returns (x, y), or mqtt:TOPIC.
        label: the column of it that is to be told; empty: as the task says.
        holdout: share of the samples that is never trained on; the global model is measured on it.
        samples: of a live topic, so many are kept, in memory and in `state_dir`.
        checkpoint_s: a round that is half done is written down so often; 0: never.
        spinning: whether onnxruntime's threads wait busily; for a machine with nothing else to do.
        predict: publish what the model tells of a live topic's readings.
        publish: where to; empty: TOPIC/prediction.
        options: what the Trainer's constructor is given.
        state_dir: where the spool lives; must survive a reboot.
        resend_s: an update without a Receipt is sent again after this, then twice this, ...
        resend_longest_s: ... up to this.
        silence_s: a chunk that does not come within this is asked for anew.
        reconnect_s: longest wait before the next try to connect.
        seed: of the local training; -1 takes the machine's entropy.
        when: what must hold before this device trains, besides what the task asks.
        provider: `module:function` that tells what the device is like; empty: it is looked up.
        conditions_every_s: how often conditions that do not hold are looked at again.
        watts: what the device draws while it trains; a task with a budget of joules needs it.
        nice: lower the process' priority by so much.
        threads: at most so many threads of linear algebra; 0: as many as there are cores.
        memory_mb: at most so much memory; a trainer that wants more fails; 0: no bound.
        disk_mb: at most so much of the disk in `state_dir` for updates, model and bundle; 0: no
            bound but 64 open updates.
    """

    device: str
    task: str
    trainer: str = ""
    data: str = ""
    label: str = ""
    holdout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    samples: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 4096
    checkpoint_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    spinning: bool = False
    predict: bool = False
    publish: str = ""
    options: dict[str, Option] = msgspec.field(default_factory=dict)
    state_dir: str = "fedmq-state"
    resend_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    resend_longest_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    silence_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    reconnect_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    seed: Annotated[int, msgspec.Meta(ge=-1)] = -1
    when: Conditions = Conditions()
    provider: str = ""
    conditions_every_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    watts: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    disk_mb: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def spool_name(self) -> str:
        """The file in `state_dir` that holds what must not be forgotten. Raises ConfigError."""
        return f"{self.state_name}.sqlite"

    @property
    def state_name(self) -> str:
        """What the names of all its files in `state_dir` begin with. Raises ConfigError."""
        return f"{task_name(self.task)}.{device_id(self.device)}"
