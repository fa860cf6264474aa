"""A round's energy as time: joules over the watts that this device draws while it trains. Pure."""

import msgspec

from schemas.errors import ConfigError
from schemas.task import TrainOptions


def seconds_of(options: TrainOptions, watts: float) -> TrainOptions:
    """The options with their joules turned into seconds; the shorter bound holds.

    Raises:
        ConfigError: the task gives a budget of joules, but the device does not say what it draws.
    """
    if not options.joules:
        return options
    if watts <= 0:
        remedy = "the task gives joules: say what this device draws while it trains"
        raise ConfigError("watts", remedy)
    seconds = options.joules / watts
    shorter = min(seconds, options.seconds) if options.seconds else seconds
    return msgspec.structs.replace(options, seconds=shorter)
