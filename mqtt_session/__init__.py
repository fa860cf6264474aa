"""The wire: one reconnecting MQTT session (on aiomqtt), used by device and bridge."""
