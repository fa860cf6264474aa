"""The soak: a real fleet, broken on a seed for a long time, and a witness who counts."""
