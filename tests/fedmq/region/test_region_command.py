"""`fedmq region` before it runs: settings, secrets, and the remedy beside a refusal."""

import logging

import pytest
from typer.testing import CliRunner

from fedmq.cli import app
from fedmq.region.refusals import Remedy
from schemas.errors import ConfigError

ARGUMENTS = ["region", "--task", "pumps", "--device", "north"]


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ([], "site_redis_url"),
        (["--site-redis-url", "redis://u:s3cret@127.0.0.1/0"], "site_redis_url"),
        (["--site-redis-url", "nonsense"], "site_redis_url"),
        (["--site-redis-url", "redis://127.0.0.1:1/0", "--contributions", "0"], "contributions"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_the_secret(
    extra: list[str], field: str
) -> None:
    done = CliRunner().invoke(app, [*ARGUMENTS, *extra])
    assert isinstance(done.exception, ConfigError)
    assert field in str(done.exception)
    assert "s3cret" not in str(done.exception)


@pytest.mark.parametrize(("reason", "told"), [("bad_number", True), ("too_stale", False)])
def test_a_refused_number_comes_with_its_remedy(
    reason: str, *, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("tests.region")
    remedy = Remedy(10)
    log.addFilter(remedy)
    try:
        log.warning("update_rejected seq=%d reason=%s", 3, reason)
    finally:
        log.removeFilter(remedy)
    (line,) = caplog.messages
    assert line.startswith(f"update_rejected seq=3 reason={reason}")
    assert ("strategy.contributions_max=40" in line) is told
