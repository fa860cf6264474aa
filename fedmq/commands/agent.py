"""`fedmq agent`: the same as `fedmq-agent`, where only `fedmq` is at hand."""

from typing import Any, Final

import typer

from edge_agent.__main__ import main

WHOLE: Final[dict[str, Any]] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
"""All arguments, --help among them, are the agent's own."""


def agent(context: typer.Context) -> None:
    """Train one fleet's model on this device's own data: as fedmq-agent, with its flags."""
    main(context.args, prog="fedmq agent")
