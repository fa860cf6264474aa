"""One exchange for a device that sleeps between: wake, send and fetch, train once, sleep.

    from edge_agent.exchange import exchange
    done = exchange(settings, trainer, within_s=60)

What was trained at the last wake is sent first; the newest model is fetched and trained from when
conditions hold; that update is sent in the same exchange. What has no Receipt when time is up stays
on the disk for the next one.
"""

import asyncio
from dataclasses import dataclass

from edge_agent.agent import Agent
from edge_agent.conditions.looking import Unmet
from edge_agent.link import Connection
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import Trainer
from lifetimes.loop import run


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What came of it.

    Attributes:
        linked: whether the broker was reached.
        version: the model that is here now; None before the first.
        settled: updates that got their Receipt.
        open: updates that wait for the next exchange.
        resting: why nothing more was trained, a sentence.
    """

    linked: bool
    version: int | None
    settled: int
    open: int
    resting: str


def exchange(
    settings: AgentSettings,
    trainer: Trainer,
    *,
    within_s: float = 120.0,
    spool: Spool | None = None,
    unmet: Unmet | None = None,
) -> Exchanged:
    """Do one exchange and return, after `within_s` seconds at the latest (and a running round).

    Not from within a running event loop: await `exchange_now` there.

    Raises:
        ConfigError: a setting cannot work.
    """
    return run(exchange_now(settings, trainer, within_s=within_s, spool=spool, unmet=unmet))


async def exchange_now(
    settings: AgentSettings,
    trainer: Trainer,
    *,
    within_s: float = 120.0,
    spool: Spool | None = None,
    unmet: Unmet | None = None,
    connection: Connection | None = None,
) -> Exchanged:
    """The same in a running event loop, on a connection of its own or the user's."""
    agent = Agent(settings, trainer, spool, unmet=unmet, connection=connection)
    linked, before, resting = False, agent.open_updates, ""
    until = asyncio.get_running_loop().time() + within_s

    def is_done() -> bool:
        """Nothing is open, or what is due may not go up before time is up."""
        left_s = until - asyncio.get_running_loop().time()
        return not agent.open_updates or agent.held_s > left_s

    made, replaced = agent.created, agent.replaced
    async with agent:
        try:
            async with asyncio.timeout(within_s):
                await agent.until(lambda: agent.online)
                linked = True
                await agent.until(lambda: agent.caught_up)
                await agent.until(lambda: bool(agent.resting))
                resting = agent.resting
                agent.drain()
                await agent.until(is_done)
        except TimeoutError:
            agent.drain()
            await agent.until(lambda: not agent.working)  # what it has trained is kept
        left = agent.open_updates
        fresh = (agent.created - made) - (agent.replaced - replaced)
        return Exchanged(
            linked, agent.version, before + fresh - left, left, resting or agent.resting
        )
