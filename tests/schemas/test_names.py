from hashlib import sha256

import pytest

from schemas.errors import ConfigError
from schemas.names import DeviceId, device_id, is_name, shard_of, task_name


@pytest.mark.parametrize("name", ["a", "0", "_", "-", "pump-7_b", "x" * 48])
def test_a_name_is_1_to_48_of_a_to_z_digits_underscore_and_hyphen(name):
    assert is_name(name)
    assert device_id(name) == task_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 49, "A", "é", "a/b", "+", "#", "a b", "a\n", "\na", "a.b", "$x", "a\0", "٣"]
)
def test_nothing_that_could_bend_a_topic_is_a_name(name):
    assert not is_name(name)
    for check, field in ((device_id, "device"), (task_name, "task")):
        with pytest.raises(ConfigError) as caught:
            check(name)
        assert caught.value.field == field
        assert "rename it" in caught.value.remedy


def test_the_shard_is_the_first_hex_digit_of_the_devices_sha256():
    for name in ("pump-7", "a", "x" * 48):
        assert shard_of(DeviceId(name)) == sha256(name.encode()).hexdigest()[0]


def test_devices_spread_over_all_sixteen_shards():
    assert len({shard_of(DeviceId(f"device-{i}")) for i in range(300)}) == 16
