import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.bundle import BundleRef
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StrategyOptions
from schemas.task import (
    SPEC_BYTES_MAX,
    InitOptions,
    LimitOptions,
    PublishOptions,
    TaskFile,
    TaskSpec,
    TrainOptions,
    checked_spec,
    device_spec_from_json,
    read_task_file,
    spec_from_json,
    spec_to_json,
)

PARAMS = ParamSpec((TensorSpec("w", (4, 2)), TensorSpec("b", (2,))))
TOML = """
[strategy]
name = "fedasync"
alpha = 0.3
staleness = { kind = "hinge", a = 10, b = 2 }

[train]
epochs = 2
options = { optimiser = "adam", warmup = 3, clip = 0.5, shuffle = true }

[codec]
name = "float32"

[publish]
every = 5
"""


def test_a_task_file_becomes_a_spec_with_the_models_tensors():
    spec = read_task_file(TOML).spec(PARAMS)
    assert spec.params == PARAMS
    assert spec.strategy.name == "fedasync"
    assert spec.strategy.staleness.b == 2.0
    assert spec.train.options == {"optimiser": "adam", "warmup": 3, "clip": 0.5, "shuffle": True}
    assert spec.codec.name == "float32"
    assert spec.publish.every == 5


def test_an_empty_file_is_a_task_of_defaults():
    assert read_task_file("") == TaskFile()
    assert read_task_file("").spec(PARAMS) == TaskSpec(PARAMS)


def test_tensors_may_be_spelt_out_in_the_file():
    text = "[params]\ntensors = [{ name = 'w', shape = [4, 2] }, { name = 'b', shape = [2] }]"
    assert read_task_file(text).params == PARAMS


@pytest.mark.parametrize("spec", [TaskSpec(PARAMS), read_task_file(TOML).spec(PARAMS)])
def test_a_spec_survives_its_json(spec):
    assert spec_from_json(spec_to_json(spec)) == spec


def test_a_spec_that_leaves_out_what_has_a_default_is_read():
    assert spec_from_json(b'{"params":{"tensors":[{"name":"w"}]}}').params.size == 1


def test_a_spec_is_read_up_to_its_largest_size_and_not_beyond():
    longest = spec_to_json(TaskSpec(PARAMS)).ljust(SPEC_BYTES_MAX)
    assert spec_from_json(longest) == TaskSpec(PARAMS)
    with pytest.raises(ConfigError, match="more than"):
        spec_from_json(longest + b" ")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[strategy]\nbuffer_size = 0", "strategy.buffer_size"),
        ("[strategy]\nbuffer_size = '10'", "strategy.buffer_size"),
        ("[strategy]\nbuffer_size = 99999999999999999999999", "strategy.buffer_size"),
        ("[strategy]\nname = 'fedsgd'", "strategy.name"),
        ("[strategy]\nmomentum = 1.0", "strategy.momentum"),
        ("[strategy]\nalpha = 0", "strategy.alpha"),
        ("[strategy]\nmax_staleness = -1", "strategy.max_staleness"),
        ("[strategy]\nviews = 0", "strategy.views"),
        ("[strategy]\nflush_after_s = -0.1", "strategy.flush_after_s"),
        ("[strategy.staleness]\nkind = 'cubic'", "strategy.staleness.kind"),
        ("[strategy.staleness]\na = 0.0", "strategy.staleness.a"),
        ("[train]\nlearning_rate = nan", "train.learning_rate"),
        ("[train]\nlearning_rate = inf", "train.learning_rate"),
        ("[train]\nepochs = 1.5", "train.epochs"),
        ("[train]\nbatch_size = true", "train.batch_size"),
        ("[train]\nrounds_per_base = 0", "train.rounds_per_base"),
        ("[codec]\ndensity = 'half'", "codec.density"),
        ("[publish]\nchunk_bytes = 63", "publish.chunk_bytes"),
        ("[publish]\nevery = 0", "publish.every"),
        ("[publish]\nlattice = 1", "publish.lattice"),
        ("[publish]\nstep = -0.5", "publish.step"),
        ("[publish]\nstep = nan", "publish.step"),
        ("[publish]\nstep = inf", "publish.step"),
        ("[limits]\nmax_update_bytes = -1", "limits.max_update_bytes"),
        ("[limits]\nmax_abs = 0", "limits.max_abs"),
        ("[init]\nkind = 'ones'", "init.kind"),
        ("[init]\nseed = -1", "init.seed"),
        ("[[params.tensors]]\nname = 'w'\nshape = [0]", "params.tensors[0].shape[0]"),
        ("[[params.tensors]]\nname = 'w'\n[[params.tensors]]\nname = 'w'", "params"),
    ],
)
def test_a_value_that_cannot_work_is_refused_under_its_dotted_name(text, field):
    with pytest.raises(ConfigError) as caught:
        read_task_file(text)
    assert caught.value.field == field
    assert caught.value.remedy
    assert str(caught.value) == f"{field}: {caught.value.remedy}"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[codec]\nname = 'zip'", "codec.name"),
        ("[codec]\ndensity = 0.0", "codec.density"),
        ("[codec]\ndensity = 1.01", "codec.density"),
        ("[codec]\ndensity = nan", "codec.density"),
        ("[publish]\nevery = 65", "publish.every"),
        ("[publish]\nstep = 0.04", "publish.step"),
        ("[publish]\nstep = 1e-300", "publish.step"),
        ("[train.options]\ntemperature = nan", "train.options.temperature"),
        ("[train.options]\ntemperature = -inf", "train.options.temperature"),
    ],
)
def test_what_the_types_cannot_tell_is_refused_when_the_spec_is_made(text, field):
    with pytest.raises(ConfigError) as caught:
        read_task_file(text).spec(PARAMS)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[strategy]\nbuffersize = 3", r"strategy\.buffersize: does not exist"),
        ("colour = 'red'", "colour: does not exist"),
        ("[train\n", "not TOML"),
        ("[train]\nepochs = 1\nepochs = 2", "not TOML"),
    ],
)
def test_what_is_unknown_or_no_toml_is_named(text, names):
    with pytest.raises(ConfigError, match=names):
        read_task_file(text)


def test_every_default_obeys_its_own_bounds():
    """Struct defaults are not validated; this reads them as if a person had written them."""
    assert msgspec.convert(msgspec.to_builtins(TaskFile()), TaskFile) == TaskFile()


def test_an_update_may_be_twice_the_dense_model_unless_the_task_says_otherwise():
    assert TaskSpec(PARAMS).max_update_bytes == 8 * 10 + 4096
    assert TaskSpec(PARAMS, limits=LimitOptions(max_update_bytes=77)).max_update_bytes == 77


def test_publishing_every_version_is_allowed_when_only_fresh_updates_are():
    strategy = StrategyOptions(max_staleness=0)
    spec = TaskSpec(PARAMS, strategy)
    assert spec_from_json(spec_to_json(spec)) == spec


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"params":{"tensors":[]}}',
        b'{"params":{"tensors":[{"name":"w"}]},"x":1}',
        b'{"params":"\xff"}',
        b"\xff\xfe",
        b"1e9999",
        b"[" * 100_000,
        b'{"params":' * 10_000,
    ],
)
def test_json_that_is_no_spec_is_refused(data):
    with pytest.raises(ConfigError):
        spec_from_json(data)


@LEAN
@given(data=st.binary(max_size=80), text=st.text(max_size=80))
def test_arbitrary_text_is_refused_and_never_worse(data, text):
    with pytest.raises(ConfigError):
        spec_from_json(data)
    with suppress(ConfigError):
        read_task_file(text)


@pytest.mark.parametrize(
    ("text", "field", "known"),
    [
        ("[train]\nepoch = 3", "train.epoch", "epochs"),
        ("[strategy.staleness]\nc = 3", "strategy.staleness.c", "kind, a, b"),
        ("[[params.tensors]]\nname = 'w'\nform = [3]", "params.tensors[0].form", "name, shape"),
        ("[gates]", "gates", "strategy, train"),
    ],
)
def test_a_field_that_does_not_exist_is_named_with_those_that_do(text, field, known):
    with pytest.raises(ConfigError) as refused:
        read_task_file(text)
    assert refused.value.field == field
    assert "does not exist; there are " in refused.value.remedy
    assert known in refused.value.remedy


@pytest.mark.parametrize(
    ("kind", "when", "needs"),
    [
        ("trained", Conditions(), ()),
        ("buffer", Conditions(), ("kinds",)),
        ("frozen", Conditions(), ("kinds",)),
        ("local", Conditions(charging=True), ("kinds", "when")),
        ("trained", Conditions(hours="22-6"), ("when",)),
    ],
)
def test_a_task_needs_of_a_device_what_would_do_harm_if_it_were_passed_over(kind, when, needs):
    params = ParamSpec((TensorSpec("w", (2,)), TensorSpec("v", (2,), kind)))
    made = checked_spec(TaskSpec(params, train=TrainOptions(when=when)))
    assert made.needs == needs
    assert device_spec_from_json(spec_to_json(made)) == made


def test_needs_that_are_no_list_are_refused_by_name():
    with pytest.raises(ConfigError, match="needs: is not a list"):
        device_spec_from_json(b'{"needs": 5}')


def test_a_task_with_a_lattice_needs_devices_that_know_it():
    text = "[publish]\nlattice = true\nstep = 0.03125\nevery = 3"
    made = read_task_file(text).spec(PARAMS)
    assert made.needs == ("lattice",)
    assert spec_from_json(spec_to_json(made)) == made
    on_device = device_spec_from_json(spec_to_json(made))
    assert on_device.needs == ("lattice",)
    assert on_device.publish == PublishOptions(lattice=True)


def test_devices_are_told_how_the_model_was_drawn_and_not_when_it_came_from_a_file():
    file = read_task_file("[init]\nkind = 'zeros'\nseed = 7")
    drawn = file.spec(PARAMS, drawn=True)
    assert drawn.init == InitOptions("zeros", 7)
    assert device_spec_from_json(spec_to_json(drawn)).init == InitOptions("zeros", 7)
    assert file.spec(PARAMS).init is None


@pytest.mark.parametrize("table", ["gate", "finish"])
def test_nobody_judges_by_reports_that_messages_have_no_room_for(table):
    text = f'uplink = "{{}}"\n[gate]\ncanary = 0.5\n[{table}]\nmetric = "accuracy"\n'
    if table == "gate":
        text = 'uplink = "{}"\n[gate]\ncanary = 0.5\nmetric = "accuracy"\n'
    with pytest.raises(ConfigError, match="256 B") as refused:
        read_task_file(text.format("103 B")).spec(PARAMS)
    assert refused.value.field == f"{table}.by"
    read_task_file(text.format("256 B")).spec(PARAMS)


BUNDLE = BundleRef("ab" * 32, 5000, 512)


def test_a_task_with_a_bundle_needs_devices_that_know_it_and_they_are_told_all_of_it():
    made = read_task_file("").spec(PARAMS, bundle=BUNDLE)
    assert made.needs == ("bundle",)
    assert spec_from_json(spec_to_json(made)) == made
    assert device_spec_from_json(spec_to_json(made)).bundle == BUNDLE


def test_a_task_without_a_bundle_is_written_as_it_always_was():
    assert "bundle" not in json.loads(spec_to_json(read_task_file("").spec(PARAMS)))


def test_a_device_passes_over_what_a_newer_server_says_of_a_bundle():
    tables = json.loads(spec_to_json(read_task_file("").spec(PARAMS, bundle=BUNDLE)))
    tables["bundle"]["mirror"] = "https://somewhere"
    assert device_spec_from_json(json.dumps(tables).encode()).bundle == BUNDLE


@pytest.mark.parametrize(
    ("field", "value"),
    [("digest", "AB" * 32), ("digest", "../etc"), ("bytes", 0), ("bytes", 1 << 27)],
)
def test_a_reference_to_what_cannot_be_a_bundle_is_refused_by_name(field, value):
    tables = json.loads(spec_to_json(read_task_file("").spec(PARAMS, bundle=BUNDLE)))
    tables["bundle"][field] = value
    with pytest.raises(ConfigError) as refused:
        device_spec_from_json(json.dumps(tables).encode())
    assert refused.value.field == f"bundle.{field}"
