"""What a simulated fleet learns: its data, how it is dealt, how it trains, and who cheats."""
