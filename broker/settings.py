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
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    client_id: str = "fedmq-bridge"
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 28)] = 16 << 20
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
