"""Looking at this device for what a task and the device's owner ask: both must hold.

Looking may fail, as a sensor may: then nothing is trained, the reason is told, and it is tried
again. Only what can never work (ConfigError) ends the agent.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edge_agent.conditions.providers import usual
from edge_agent.conditions.readings import Provider, Readings, unmet
from edge_agent.importing import imported
from edge_agent.settings import AgentSettings
from schemas.conditions import Conditions
from schemas.errors import ConfigError

Unmet: TypeAlias = Callable[[Conditions], Sequence[str]]
"""Tells which of a task's conditions, and the owner's, do not hold now: a sentence each."""


def looking(settings: AgentSettings, trainer: object) -> Unmet:
    """Look with all that this device has. Raises ConfigError: no such provider."""
    function = imported("provider", settings.provider) if settings.provider else None
    provider = usual(trainer, function)

    def look(asked: Conditions) -> list[str]:
        if asked == settings.when == Conditions():
            return []
        try:
            now = provider()
        except ConfigError:
            raise
        except Exception as exc:  # noqa: BLE001 - user's code; the sentence goes to the log
            return [f"the device cannot be looked at: {type(exc).__name__}: {exc}"]
        return list(dict.fromkeys([*unmet(asked, now), *unmet(settings.when, now)]))

    return look


def readings_of(settings: AgentSettings, trainer: object) -> Provider:
    """What the device is like, for its score; nothing where it cannot be looked at."""
    function = imported("provider", settings.provider) if settings.provider else None
    provider = usual(trainer, function)

    def look() -> Readings:
        try:
            return provider()
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 - user's code; a score is no reason not to train
            return Readings()

    return look
