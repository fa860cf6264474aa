"""A payload's length: what a budget must hold, and what a decoder must find."""

from schemas.codecs.codec import Ask
from schemas.errors import ConfigError, WireError
from schemas.outcomes import Reason


def needs(name: str, least: int, ask: Ask) -> None:
    """Raise ConfigError when a budget is asked for that is below `least` bytes."""
    if 0 < ask.budget < least:
        remedy = f'{name} needs {least} bytes here, not {ask.budget}; codec.name = "sq" needs fewer'
        raise ConfigError("uplink", remedy)


def exactly(payload: memoryview, length: int) -> None:
    """Raise WireError (truncated, oversized) unless the payload has `length` bytes."""
    if len(payload) != length:
        reason = Reason.TRUNCATED if len(payload) < length else Reason.OVERSIZED
        raise WireError(reason, f"{len(payload)} bytes where {length} are due")


def no_spare_bits(payload: memoryview, bits: int) -> None:
    """Raise WireError unless what follows `bits` bits, highest first, in the last byte is zero."""
    spare = -bits % 8
    if spare and payload[-1] & ((1 << spare) - 1):
        raise WireError(Reason.MALFORMED, "bits after the end are not zero")
