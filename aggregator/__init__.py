"""The server: admits, folds, checkpoints and republishes. Speaks Redis, never MQTT."""
