from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.errors import ConfigError
from schemas.settings import load_settings


class Settings(msgspec.Struct, frozen=True):
    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1883
    tls: bool = False
    pause_s: float = 1.5
    topic_prefix: str = "fedmq/v1"
    user: str | None = None


def _load(file_text="", environ=None, **flags) -> Settings:
    return load_settings(
        Settings, table="bridge", file_text=file_text, environ=environ or {}, flags=flags
    )


@LEAN
@given(
    in_file=st.none() | st.integers(1, 65_535),
    in_env=st.none() | st.integers(1, 65_535),
    in_flags=st.none() | st.integers(1, 65_535),
)
def test_defaults_yield_to_the_file_the_file_to_the_environment_and_that_to_flags(
    in_file, in_env, in_flags
):
    text = "" if in_file is None else f"[bridge]\nport = {in_file}"
    environ = {} if in_env is None else {"FEDMQ_PORT": str(in_env)}
    said = [number for number in (1883, in_file, in_env, in_flags) if number is not None]
    assert _load(text, environ, host="h", port=in_flags).port == said[-1]


def test_each_field_takes_its_own_last_word():
    settings = _load(
        "[bridge]\nhost = 'file'\nport = 1\npause_s = 2", {"FEDMQ_HOST": "env"}, tls=True
    )
    assert settings == Settings("env", 1, tls=True, pause_s=2.0)


def test_only_its_own_table_and_its_own_variables_are_read():
    text = "[bridge]\nhost = 'h'\n[agent]\nport = 7\ncolour = 1"
    environ = {"PORT": "8", "FEDMQ_COLOUR": "red", "fedmq_port": "9"}
    assert _load(text, environ) == Settings("h")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "8883", 8883),
        ("tls", "true", True),
        ("tls", "1", True),
        ("tls", "false", False),
        ("pause_s", "2", 2.0),
        ("pause_s", "2.5", 2.5),
        ("host", "10", "10"),
        ("topic_prefix", "a/b", "a/b"),
        ("user", "pump", "pump"),
    ],
)
def test_text_from_the_environment_becomes_what_the_field_is(name, text, value):
    settings = _load("[bridge]\nhost = 'h'", {f"FEDMQ_{name.upper()}": text})
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)


@pytest.mark.parametrize(
    ("environ", "flags", "file_text", "field", "says"),
    [
        ({"FEDMQ_PORT": "x"}, {}, "", "port", "'x' does not fit"),
        ({"FEDMQ_PORT": "0"}, {}, "", "port", "'0' does not fit"),
        ({"FEDMQ_TLS": "perhaps"}, {}, "", "tls", "'perhaps' does not fit"),
        ({"FEDMQ_PAUSE_S": ""}, {}, "", "pause_s", "does not fit"),
        ({}, {"port": 70_000}, "", "port", "<= 65535"),
        ({}, {}, "[bridge]\nport = -1", "port", ">= 1"),
        ({"FEDMQ_PORT": "5"}, {}, "[bridge]\ntls = 'x'", "tls", "'x' does not fit"),
        ({"FEDMQ_PORT": "5"}, {}, "[bridge]\nport = 1\npause_s = [1]", "pause_s", "float"),
        ({}, {}, "[bridge]\nprot = 1", "bridge.prot", "choose from host, port"),
        ({}, {}, "bridge = 3", "bridge", "[bridge]"),
        ({}, {}, "[bridge", "the configuration file", "not TOML"),
    ],
)
def test_an_error_names_the_field_and_the_remedy(environ, flags, file_text, field, says):
    with pytest.raises(ConfigError) as caught:
        _load(file_text, environ, **({"host": "h"} | flags))
    assert caught.value.field == field
    assert says in caught.value.remedy


def test_a_missing_setting_is_named_even_when_the_environment_sets_others():
    with pytest.raises(ConfigError, match="host: is missing"):
        _load("", {"FEDMQ_PORT": "5"})


def test_a_flag_that_was_not_said_changes_nothing():
    assert _load("[bridge]\nhost = 'h'", {}, host=None, port=None) == Settings("h")
