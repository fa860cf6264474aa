"""Every exception that fedmq raises on purpose.

FedmqError
+-- ConfigError          the user's configuration: names the field and the remedy
+-- WireError            *their* bytes: counted, dead-lettered, answered; never fatal
+-- InvariantError       *our* bug: stop, reload, tell a developer
"""

from schemas.outcomes import Reason


class FedmqError(Exception):
    """The root of the tree."""


class ConfigError(FedmqError):
    """A setting that cannot work.

    Attributes:
        field: the dotted name of the setting.
        remedy: what to do about it, one sentence.
    """

    def __init__(self, field: str, remedy: str) -> None:
        super().__init__(f"{field}: {remedy}")
        self.field = field
        self.remedy = remedy


class WireError(FedmqError):
    """Bytes that do not say what their kind of message must say.

    Attributes:
        reason: the name under which the refusal is counted and answered.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.name.lower()}: {detail}")
        self.reason = reason


class InvariantError(FedmqError):
    """Something that cannot happen has happened."""
