"""docs/wire.md says what the code does: its numbers are compared, its prose is not."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec, spec_to_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]


def _worked_example(array: str) -> str:
    """The hex of the block that opens with `array`: the bytes before the first wide gap."""
    example = PAGE.split("## 10.", 1)[1].split("\n## ", 1)[0]
    block = next(b for b in example.split("\n\n") if b.startswith(f"    {array} "))
    return "".join(re.split(r" {2,}", line.strip())[0] for line in block.splitlines())


@pytest.mark.parametrize(
    ("file", "array"), [("update.json", "99"), ("manifest.json", "9a"), ("receipt.json", "98")]
)
def test_the_worked_example_is_the_first_vector(file, array):
    vector = json.loads((ROOT / "tests" / "vectors" / file).read_text(encoding="utf-8"))[0]
    assert bytes.fromhex(_worked_example(array)).hex() == vector["hex"]


def test_the_table_of_outcomes_lists_every_reason():
    listed = {row[1].strip(): int(row[0]) for row in _rows("### Outcome codes")[2:]}
    assert listed == {"": 0, "folded": 1} | {r.name.lower(): int(r) for r in Reason}


def test_the_table_of_the_spec_lists_every_field_with_its_default():
    listed = {}
    for name, _, default, _ in _rows("## 8. TaskSpec: the JSON below `spec`")[2:]:
        field = name.replace("*", "").strip().strip("`")
        if not field.startswith("params."):
            listed[field] = json.loads(default.strip().strip("`"))
    assert listed == dict(_leaves(TaskSpec(ParamSpec((TensorSpec("w"),)))))


def _leaves(spec: TaskSpec):
    tables = msgspec.json.decode(spec_to_json(spec))
    del tables["params"]
    pending = list(tables.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict) and value:
            pending += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            yield name, value
