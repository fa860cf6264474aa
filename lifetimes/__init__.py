"""How asyncio tasks live and end together. Knows nothing else; every shell may use it."""
