"""A bound on what goes up, on a running agent: messages that fit, and waits that are told."""

import asyncio

import msgspec
import pytest

from edge_agent import disk
from edge_agent.allowance import from_disk
from edge_agent.exchange import exchange_now
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from schemas.outcomes import Reason
from schemas.task import TaskSpec, TrainOptions
from tests.edge_agent.played_server import (
    DEVICE,
    SPEC,
    Model,
    Tiny,
    device,
    eventually,
    server_side,
)


def bounded(uplink: str, **train: int) -> TaskSpec:
    return msgspec.structs.replace(
        SPEC, uplink=uplink, needs=("uplink",), train=TrainOptions(**train)
    )


async def test_a_device_keeps_to_what_may_go_up_and_tells_how_long_it_waits(
    mosquitto, tmp_path, caplog
) -> None:
    caplog.set_level("INFO", "fedmq.agent")
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec(bounded("60 B, 120 B/day"))
        await server.keep_model(Model(1))
        first = await server.update()
        assert (first.base_version, first.spec_digest, first.metrics) == (1, None, {})
        await eventually(lambda: there.agent.held_s > 3600, "sending it again waits, too")
        await server.keep_model(Model(2))
        told = "the uplink's allowance: 18 h until the next packet"
        await eventually(lambda: there.agent.resting == told, "it says why it rests")
        assert caplog.text.count(f"not_training: {told}") == 1
        assert there.trainer.started_from == [101]
        await server.keep_spec(bounded("60 B, 10 MB/day"))  # at any time, for the whole fleet
        assert (await server.update_from(Model(2))).seq == 2
        assert there.agent.held_s < 60  # re-sends are paid for, too: seconds now, not hours


async def test_what_was_used_up_is_used_up_after_a_restart(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        async with device(mosquitto, tmp_path):
            await server.keep_spec(bounded("60 B, 120 B/day"))
            await server.keep_model(Model(1))
            await server.settle(await server.update())
        async with device(mosquitto, tmp_path, boot=88) as there:
            await server.keep_model(Model(2))
            await eventually(lambda: "allowance" in there.agent.resting, "it rests")
            assert there.created == []


async def test_what_has_flown_in_is_written_down_when_the_link_ends(mosquitto, tmp_path) -> None:
    def level(spool: Spool) -> float:
        return from_disk(spool.load("allowance"), 0.0, 0.0).level or 0.0

    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec(bounded("60 B, 86.4 MB/day"))  # 1,000 a second
        await server.keep_model(Model(1))
        await server.settle(await server.update())
        await eventually(lambda: not there.spool.open_updates(), "it is settled")
        before = level(there.spool)
        await asyncio.sleep(0.2)
        mosquitto.stop()
        await eventually(lambda: level(there.spool) >= before + 200, "it is written down")
    assert before <= 0.0


async def test_an_exchange_ends_when_what_is_open_may_not_go_up_before_its_end(
    mosquitto, tmp_path
) -> None:
    settings = AgentSettings(
        mqtt_port=mosquitto.port,
        device=DEVICE,
        task="pumps",
        trainer="not:used",
        state_dir=str(tmp_path / "state"),
        resend_s=0.2,
    )
    async with server_side(mosquitto) as server:
        await server.keep_spec(bounded("60 B, 120 B/day"))
        await server.keep_model(Model(1))
        async with asyncio.timeout(15):  # nobody answers, and it may not be said again
            done = await exchange_now(settings, Tiny(), within_s=600)
        assert (done.linked, done.version, done.settled, done.open) == (True, 1, 0, 1)
        await server.settle(await server.update())
        await server.keep_model(Model(2))
        async with asyncio.timeout(15):
            again = await exchange_now(settings, Tiny(), within_s=600)
        assert (again.version, again.settled, again.open) == (2, 1, 0)
        assert again.resting.startswith("the uplink's allowance: 1")


@pytest.mark.parametrize("steps", [0, 1])
async def test_what_a_refused_update_took_out_of_the_residual_comes_back(
    mosquitto, tmp_path, steps: int
) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec(bounded("60 B", steps=steps))
        await server.keep_model(Model(1))
        update = await server.update()
        left = there.spool.load("residual")
        await server.settle(update, Reason.TOO_STALE)
        await eventually(lambda: not there.spool.open_updates(), "the update is settled")
        if steps:
            assert there.spool.load("residual") not in {left, None}, "it is added again"
        else:
            assert there.spool.load("residual") is None, "as if it had never been"


def test_a_bound_on_messages_leaves_room_for_more_of_them_on_the_disk() -> None:
    free, short = SPEC, bounded("60 B")
    assert disk.update_bytes(free) == disk.on_pages(8 * 200 + 4096)
    assert disk.update_bytes(short) == disk.on_pages(60)
    assert disk.megabytes_needed(short) <= disk.megabytes_needed(free)
