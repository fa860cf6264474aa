"""Where Redis is, out of a URL. Pure.

    redis://host:6379/0                                  one server (rediss:// and unix:// too)
    redis+sentinel://host[:26379][,host...]/SERVICE[/DB]  the primary that Sentinel knows by a name

User and password stand before the hosts, as usual, and are those of the servers. Refuses
(ConfigError) what cannot be read, without repeating it: it may hold a password.
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from schemas.errors import ConfigError

SENTINEL_PORT: Final = 26_379
_SCHEMES: Final = {"redis+sentinel": False, "rediss+sentinel": True}


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary that Sentinel watches.

    Attributes:
        sentinels: (host, port) of those to ask.
        service: the name they know the primary by.
        db: its database.
        tls: whether the servers are spoken to over TLS.
        user: of the servers; empty for none.
        password: of the servers; empty for none; never shown.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int = 0
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)


def watched(url: str) -> Watched | None:
    """Read a Sentinel URL; None for one of a plain server. Raises ConfigError."""
    scheme, separator, rest = url.partition("://")
    if scheme not in _SCHEMES or not separator:
        return None
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, db = path.partition("/")
    if not service or not (db or "0").isdigit():
        raise _unreadable("must end in /SERVICE or /SERVICE/DB")
    return Watched(
        sentinels=tuple(_host(text) for text in hosts.split(",")),
        service=service,
        db=int(db or 0),
        tls=_SCHEMES[scheme],
        user=unquote(user),
        password=unquote(password),
    )


def _host(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise _unreadable("has a host or port that cannot be read") from exc
    if not host:
        raise _unreadable("names no Sentinel")
    return host, port or SENTINEL_PORT


def _unreadable(why: str) -> ConfigError:
    remedy = f"{why}; write redis+sentinel://host:26379,host:26379/SERVICE/0"
    return ConfigError("redis_url", remedy)
