"""Twenty devices in one process: real agents, each with its own spool, link and witness."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.agent import Agent
from edge_agent.rounds import entropy_of
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainers import MlpTrainer
from edge_agent.trainers.examples import Examples
from fedmq.demo.summary import DeviceAccount
from fedmq.demo.witness import Witness
from fedmq.simulator.links import LinkModel
from fedmq.simulator.proxy import Proxy, open_proxy
from lifetimes.together import end
from schemas.names import TaskName


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the demo."""

    agent: Agent
    spool: Spool
    link: Proxy
    witness: Witness

    def account(self) -> DeviceAccount:
        """What became of its updates, as far as the device knows."""
        return DeviceAccount(
            self.witness.created, len(self.spool.open_updates()), self.spool.superseded
        )


@asynccontextmanager
async def fleet(
    folder: Path,
    task: TaskName,
    parts: Sequence[Examples],
    *,
    mqtt_port: int,
    weather: LinkModel,
    seed: int,
) -> AsyncIterator[list[Device]]:
    """Start a device for every part of the data; stop them at the end."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        devices: list[Device] = []
        for number, part in enumerate(parts):
            rng = random.Random(f"{seed}/{number}")  # noqa: S311 - a seeded simulation
            link = await stack.enter_async_context(open_proxy(mqtt_port, weather, rng))
            settings = AgentSettings(
                device=f"device-{number:02}",
                task=task,
                trainer="edge_agent.trainers:MlpTrainer",
                mqtt_port=link.port,
                mqtt_keepalive_s=10,
                mqtt_connect_timeout_s=5.0,
                state_dir=str(folder / "devices"),
                resend_s=0.4,
                resend_longest_s=8.0,
                silence_s=3.0,
                reconnect_s=1.0,
                seed=seed * 1000 + number,
            )
            device = _device(settings, part, link, rng, folder)
            stack.callback(device.spool.close)
            stack.callback(device.witness.close)
            devices.append(device)
        running = [group.create_task(device.agent.run()) for device in devices]
        try:
            yield devices
        finally:
            await end(running)


def _device(
    settings: AgentSettings, part: Examples, link: Proxy, rng: random.Random, folder: Path
) -> Device:
    spool = Spool(Path(settings.state_dir) / settings.spool_name)
    witness = Witness(folder / "devices" / f"{settings.device}.witness.jsonl")
    agent = Agent(
        settings,
        MlpTrainer(part.features, part.labels),
        spool,
        entropy=entropy_of(settings.seed),
        rng=rng,
        on_created=witness,
    )
    return Device(agent, spool, link, witness)
