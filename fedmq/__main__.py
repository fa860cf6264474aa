"""The threshold of `fedmq`: what is not installed is a sentence; Ctrl-C is heard at once."""

import sys


def main() -> None:
    """Run the command. Exit code 2 when a library is missing, 130 for Ctrl-C."""
    try:
        from fedmq.cli import main as command  # noqa: PLC0415 - a second of imports: see above
    except ModuleNotFoundError as exc:
        if (exc.name or "fedmq").partition(".")[0] == "fedmq":
            raise
        remedy = "pip install 'fedmq[server]', or [demo] for all of it; a device has fedmq-agent"
        print(f"fedmq: {exc.name} is not installed: {remedy}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
