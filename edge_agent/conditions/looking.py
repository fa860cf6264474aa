"""Looking at this device for what a task and the device's owner ask."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edge_agent.conditions.providers import usual
from edge_agent.conditions.readings import unmet
from edge_agent.importing import imported
from edge_agent.settings import AgentSettings
from schemas.conditions import Conditions

Unmet: TypeAlias = Callable[[Conditions], Sequence[str]]
"""Tells which of a task's conditions, and the owner's, do not hold now: a sentence each."""


def looking(settings: AgentSettings, trainer: object) -> Unmet:
    """Look with all that this device has. Raises ConfigError: no such provider."""
    function = imported("provider", settings.provider) if settings.provider else None
    provider = usual(trainer, function)

    def look(asked: Conditions) -> list[str]:
        if asked == settings.when == Conditions():
            return []
        now = provider()
        return list(dict.fromkeys([*unmet(asked, now), *unmet(settings.when, now)]))

    return look
