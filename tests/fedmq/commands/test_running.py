"""Settings that cannot be used are refused without saying what is secret in them."""

import pytest

from broker.settings import BridgeSettings
from fedmq.commands.running import read_settings
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/word@10.0.0.5:6379/0",
        "redis://:123/s3cret@10.0.0.5:6379/0",
        "redis://:123#s3cret@10.0.0.5:6379/0",
        "redis://u:s3cret?word@10.0.0.5:6379/0",
        "redis://u:p[s3cret@10.0.0.5:6379/0",
        "redis://u:pass@10.0.0.5:s3cret/0",
        "redis+sentinel://:s3cret/word@one:26379/fleet",
        "http://u:s3cret@10.0.0.5/0",
    ],
)
def test_a_redis_url_that_cannot_be_used_is_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMQ_REDIS_URL", url)
    with pytest.raises(ConfigError) as caught:
        read_settings(BridgeSettings, "bridge", None, {})
    assert caught.value.field == "redis_url"
    assert not any(part in str(caught.value) for part in ("s3cret", "word@", "pass@", "123"))
    assert "s3cret" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret%2Fword@10.0.0.5:6379/0",
        "redis://10.0.0.5/0?password=a@b",
        "unix://u:pw@/run/redis@home.sock",
    ],
)
def test_a_redis_url_with_a_password_may_be_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_REDIS_URL", url)
    assert read_settings(BridgeSettings, "bridge", None, {}).redis_url == url
