from typing import Any

import msgspec
import pytest

from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.params import ParamSpec, TensorSpec
from schemas.task import (
    TaskSpec,
    device_spec_from_json,
    read_task_file,
    spec_from_json,
    spec_to_json,
)

SPEC = TaskSpec(ParamSpec((TensorSpec("w", (3,)),)))


def test_the_table_is_left_out_when_it_says_nothing() -> None:
    assert "input" not in msgspec.json.decode(spec_to_json(SPEC))


def test_server_and_device_read_what_was_written() -> None:
    given = InputOptions(("temp", "flow"), "fault", "task", (1.0, 2.0), (0.5, 1.0), window=8)
    data = spec_to_json(msgspec.structs.replace(SPEC, input=given))
    assert spec_from_json(data).input == device_spec_from_json(data).input == given


def test_a_task_file_has_the_table() -> None:
    text = '[input]\nfeatures = ["temp"]\nwindow = 20\nstride = 5\nhorizon = 3\n'
    text += 'layout = "features-first"\n'
    spec = read_task_file(text).spec(SPEC.params)
    assert spec.input == InputOptions(
        ("temp",), window=20, stride=5, horizon=3, layout="features-first"
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"features": ["a", "a"]}, "twice"),
    "a scale that nobody applies": ({"mean": [1.0], "std": [1.0]}, "unheard"),
    "no scale": ({"normalise": "task"}, r"needs input\.mean"),
    "half a scale": ({"normalise": "task", "mean": [1.0]}, "same length"),
    "another number of features": (
        {"normalise": "task", "features": ["a", "b", "c"], "mean": [0, 0], "std": [1, 1]},
        "3 features but 2",
    ),
    "a scale of nothing": ({"normalise": "task", "mean": [0.0], "std": [0.0]}, "above 0"),
    "no layout": ({"layout": "channels-last"}, "layout"),
    "no window": ({"window": 0}, "window"),
}


@pytest.mark.parametrize(("table", "complaint"), BAD.values(), ids=BAD)
def test_what_could_not_be_applied_is_refused(table: dict[str, Any], complaint: str) -> None:
    tables = msgspec.to_builtins(SPEC) | {"input": table}
    with pytest.raises(ConfigError, match=complaint):
        spec_from_json(msgspec.json.encode(tables))
