import pytest

from redis_session.address import Watched, watched
from schemas.errors import ConfigError


@pytest.mark.parametrize("url", ["redis://h:6379/0", "unix:///tmp/s", "rediss://h", "", "h:1"])
def test_a_plain_server_is_nobodys_ward(url: str) -> None:
    assert watched(url) is None


def test_a_sentinel_url_is_read() -> None:
    found = watched("redis+sentinel://u:p%40ss@a:1,b,[::1]:3/fleet/2")
    assert found == Watched((("a", 1), ("b", 26379), ("::1", 3)), "fleet", 2, False, "u", "p@ss")
    assert "p@ss" not in repr(found)
    assert watched("rediss+sentinel://a/fleet") == Watched((("a", 26379),), "fleet", tls=True)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:secret@a:1",
        "redis+sentinel://:secret@a:1/",
        "redis+sentinel://:secret@/fleet",
        "redis+sentinel://:secret@a:x/fleet",
        "redis+sentinel://:secret@a:99999/fleet",
        "redis+sentinel://:secret@a,,b/fleet",
        "redis+sentinel://:secret@a/fleet/zero",
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        watched(url)
    assert caught.value.field == "redis_url"
    assert "secret" not in str(caught.value)
