"""The servers under contract: each test that asks for `broker` runs against every one of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import pytest
from servers import Server, lab_broker, mosquitto

BROKERS: Final[dict[str, Callable[..., AbstractContextManager[Server]]]] = {
    "lab": lab_broker,
    "mosquitto": mosquitto,
}

MAX_PACKET: Final = 256 * 1024


@pytest.fixture(scope="module", params=BROKERS)
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A broker in a process of its own, shared by a module: tests use topics of their own."""
    directory = tmp_path_factory.mktemp(request.param)
    with BROKERS[request.param](directory, max_packet=MAX_PACKET) as server:
        yield server
        assert server.process.poll() is None, "no test may have brought the broker down"
