"""`python -m broker.lab --port 1883`: the lab broker as a process, until SIGINT or SIGTERM."""

import argparse
import asyncio
import logging
import signal

from broker.lab import LabBroker, Limits


def main() -> None:
    """Read the arguments and serve."""
    defaults = Limits()
    parser = argparse.ArgumentParser(prog="python -m broker.lab", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--max-packet", type=int, default=defaults.max_packet)
    parser.add_argument("--max-inflight", type=int, default=defaults.max_inflight)
    parser.add_argument("--max-queued", type=int, default=defaults.max_queued)
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(message)s")
    limits = Limits(
        max_packet=options.max_packet,
        max_inflight=options.max_inflight,
        max_queued=options.max_queued,
    )
    asyncio.run(_serve(options.host, options.port, limits))


async def _serve(host: str, port: int, limits: Limits) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopped.set)
    async with LabBroker(host, port, limits=limits):
        await stopped.wait()


if __name__ == "__main__":
    main()
