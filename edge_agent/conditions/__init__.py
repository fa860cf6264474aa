"""When this device may train: what it is like now, and what is asked of it."""
