"""Settings of `fedmq region`: an agent's, and the site that is its trainer."""

from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from edge_agent.settings import AgentSettings
from redis_session.connection import connect
from schemas.errors import ConfigError


class RegionSettings(AgentSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One site, which is one device of the task above it.

    Attributes:
        site_redis_url: where the site's logs are.
        site_task: the task's name there; empty: as above.
        contributions: of so many device contributions an update is made.
        seconds: after so long an update is made of what has come; of nothing, none is.
        trainer: not asked for: it is the site.
    """

    trainer: str = ""
    site_redis_url: str
    site_task: str = ""
    contributions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10
    seconds: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 600.0

    @property
    def inner_task(self) -> str:
        """The site's task."""
        return self.site_task or self.task


def check_url(url: str, *, said: bool) -> None:
    """Refuse a URL before anything is started with it; it may hold a password, so is not said.

    Raises ConfigError: it cannot be read, or its password was `said` on the command line.
    """
    if said and urlsplit(url).password:
        remedy = "a password on the command line is seen by everyone; use FEDMQ_SITE_REDIS_URL"
        raise ConfigError("site_redis_url", remedy)
    try:
        connect(url)  # reads the URL, opens nothing
    except ValueError:  # it repeats parts of it
        remedy = "cannot be read; write redis://host:port/0, rediss:// or unix://"
        raise ConfigError("site_redis_url", remedy) from None
