"""The device: trains, compresses, spools, and speaks MQTT. Never Redis."""
