"""What may be changed of a task whose published model walks on a lattice."""

import msgspec
import pytest

from schemas.bundle import BundleRef
from schemas.changes import changed_spec, replaced_spec
from schemas.errors import ConfigError
from schemas.params import ParamSpec, TensorSpec
from schemas.task import InitOptions, PublishOptions, TaskFile, TaskSpec, checked_spec

TENSORS = ParamSpec((TensorSpec("w", (40, 10)), TensorSpec("b", (10,))))  # by shape: 2^-4
SPEC = checked_spec(TaskSpec(TENSORS, publish=PublishOptions(lattice=True, step=2.0**-4)))


@pytest.mark.parametrize("step", ["0.03125", "0.0625", "0"])
def test_a_step_stays_or_is_halved(step: str) -> None:
    assert changed_spec(SPEC, [f"publish.step={step}"]).publish.step == float(step)


@pytest.mark.parametrize(
    ("before", "step"), [("0.0625", "0.125"), ("0.03125", "0"), ("0", "0.125")]
)
def test_a_larger_step_is_refused_by_name(before: str, step: str) -> None:
    spec = changed_spec(
        msgspec.structs.replace(SPEC, publish=PublishOptions()),
        ["publish.lattice=true", f"publish.step={before}"],
    )
    with pytest.raises(ConfigError, match="only be halved") as caught:
        changed_spec(spec, [f"publish.step={step}"])
    assert caught.value.field == "publish.step"
    file = TaskFile(publish=msgspec.structs.replace(spec.publish, step=float(step)))
    with pytest.raises(ConfigError, match="only be halved"):
        replaced_spec(spec, file)


def test_who_switches_the_lattice_off_or_on_may_choose_any_step() -> None:
    off = changed_spec(SPEC, ["publish.lattice=false", "publish.step=1.0"])
    assert changed_spec(off, ["publish.lattice=true", "publish.step=2.0"]).publish.step == 2.0


def test_chunks_on_the_broker_keep_their_size_while_the_lattice_is_on() -> None:
    with pytest.raises(ConfigError) as caught:
        changed_spec(SPEC, ["publish.chunk_bytes=512"])
    assert caught.value.field == "publish.chunk_bytes"


def test_a_task_keeps_its_initial_model() -> None:
    spec = msgspec.structs.replace(SPEC, init=InitOptions("zeros", 4))
    file = TaskFile(publish=SPEC.publish, init=InitOptions("glorot", 5))
    assert replaced_spec(spec, file).init == spec.init
    with pytest.raises(ConfigError) as caught:
        changed_spec(spec, ["init.seed=5"])
    assert caught.value.field == "init"


def test_a_task_keeps_its_bundle() -> None:
    ref = BundleRef("ab" * 32, 5000)
    spec = checked_spec(msgspec.structs.replace(SPEC, bundle=ref))
    for changed in (changed_spec(spec, ["train.epochs=3"]), replaced_spec(spec, TaskFile())):
        assert (changed.bundle, "bundle" in changed.needs) == (ref, True)
    with pytest.raises(ConfigError) as caught:
        changed_spec(spec, ["bundle.bytes=5"])
    assert caught.value.field == "bundle"
