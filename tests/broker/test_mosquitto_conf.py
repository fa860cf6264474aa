"""The mosquitto.conf that is shipped: real mosquitto takes it."""

import subprocess
from pathlib import Path

import servers


def test_mosquitto_takes_the_shipped_configuration(tmp_path: Path) -> None:
    shipped = (servers.ROOT / "broker/mosquitto/mosquitto.conf").read_text()
    port = servers.free_port()
    config = tmp_path / "mosquitto.conf"
    where = f"persistence_location {tmp_path}/\nuser root\n"
    config.write_text(shipped.replace("listener 1883", f"listener {port}") + where)
    command = ["/usr/sbin/mosquitto", "-c", str(config)]
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as process:
        while not servers.reacts(port):
            assert process.poll() is None, log.read_text()
        process.terminate()
    assert "Error" not in log.read_text()
