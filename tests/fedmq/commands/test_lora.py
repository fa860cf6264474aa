import json

import pytest
from typer.testing import CliRunner

from broker.lorawan.adapter import Adapter
from broker.lorawan.settings import LorawanSettings
from fedmq.cli import app
from schemas.errors import ConfigError

RUN = CliRunner()


def test_a_plan_is_a_table_and_one_json_document():
    arguments = ["lora", "plan", "--region", "eu868", "--sf", "10", "--params", "9610"]
    shown = RUN.invoke(app, arguments, env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "SF10 (DR2)" in shown.output
    assert "strategy.buffer_size" in shown.output
    found = json.loads(RUN.invoke(app, [*arguments, "--json"]).output)
    assert (found["frames_day"], found["frame_bytes"], found["envelope_bytes"]) == (1237, 51, 4)


def test_a_forbidden_plan_names_field_and_remedy():
    done = RUN.invoke(app, ["lora", "plan", "--sf", "12", "--params", "9", "--region", "us915"])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.field == "sf"


@pytest.mark.parametrize("command", ["plan", "bridge"])
def test_help_teaches(command):
    shown = RUN.invoke(app, ["lora", command, "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"task": ""}, "task"),
        ({"application": ""}, "application"),
        ({"application": "a/+"}, "application"),
        ({"region": "eu433"}, "region"),
        ({"network_url": "http://x"}, "network_url"),
        ({"network_ca": "ca.pem"}, "network_ca"),
        ({"network_cert": "c.pem", "network_url": "mqtts://x"}, "network_key"),
        ({"mqtt_url": "http://x"}, "mqtt_url"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changed, field):
    good = {"task": "pumps", "application": "52f1"}
    with pytest.raises(ConfigError) as refused:
        Adapter(LorawanSettings(**(good | changed)))
    assert refused.value.field == field
    assert "mqtt_" not in refused.value.remedy or field.startswith("mqtt_")
