"""Settings of `fedmq bridge`."""

from typing import Annotated

import msgspec

from mqtt_session.settings import MqttSettings


class BridgeSettings(MqttSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One bridge process.

    Attributes:
        redis_url: where the logs are.
        client_id: of the persistent MQTT session; stable, one a bridge.
        max_message_bytes: of a larger message only the head is kept, and it is refused.
        lease_s: how long a silent bridge keeps a task's downlink.
        shards: of several bridges side by side, those of this one: `0-7` or `0,3,a-f`; empty: all.
            Each needs a client id of its own.
        slow_s: a batch that Redis takes longer for is slow: devices are asked to wait.
        log_max_bytes: above this size of a task's log nothing more is taken for it until it was
            folded and trimmed; 0: no bound. Keep it above [aggregator].log_keep_bytes.
        wait_replicas: promises are passed on when so many replicas of Redis have them.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    client_id: str = "fedmq-bridge"
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 28)] = 16 << 20
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    shards: str = ""
    slow_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    log_max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    wait_replicas: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
