"""The front door: the `fedmq` command, and the rooms that only it opens."""
