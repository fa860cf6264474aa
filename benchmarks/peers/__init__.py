"""The same work under other systems, each in a throw-away environment of its own."""
