import pytest

from edge_agent.conditions.budget import seconds_of
from schemas.errors import ConfigError
from schemas.task import TrainOptions


def test_energy_over_power_is_time():
    assert seconds_of(TrainOptions(joules=12.0), 4.0).seconds == 3.0


@pytest.mark.parametrize(("seconds", "bound"), [(2.0, 2.0), (9.0, 3.0)])
def test_the_shorter_bound_holds(seconds, bound):
    assert seconds_of(TrainOptions(joules=12.0, seconds=seconds), 4.0).seconds == bound


def test_without_joules_nothing_changes():
    options = TrainOptions(seconds=2.0)
    assert seconds_of(options, 0.0) is options


def test_a_device_that_does_not_know_its_power_says_so():
    with pytest.raises(ConfigError) as refused:
        seconds_of(TrainOptions(joules=12.0), 0.0)
    assert refused.value.field == "watts"
