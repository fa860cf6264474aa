"""The counter: how a process comes to Redis, wherever its primary is; used by bridge and server."""
