import pytest

from schemas.conditions import Conditions, spans_of, within_hours
from schemas.errors import ConfigError
from schemas.task import read_task_file


def test_hours_may_pass_midnight():
    assert [hour for hour in range(24) if within_hours("22-6", hour)] == [*range(6), 22, 23]


def test_several_spans_add_up():
    assert [hour for hour in range(24) if within_hours("0-2, 13-14", hour)] == [0, 1, 13]
    assert spans_of("0-2, 13-14") == ((0, 2), (13, 14))


def test_no_hours_are_all_hours():
    assert within_hours("", 3.5)


def test_a_part_of_an_hour_counts():
    assert within_hours("5-6", 5.99)
    assert not within_hours("5-6", 6.0)


@pytest.mark.parametrize("hours", ["22", "22-", "a-b", "1-1", "24-3", "3-25", "1-2;3-4", "-1-2"])
def test_hours_that_cannot_be_read_are_refused_by_name(hours):
    with pytest.raises(ConfigError) as refused:
        read_task_file(f'[train.when]\nhours = "{hours}"')
    assert refused.value.field == "train.when"
    assert "hours" in refused.value.remedy


def test_nothing_is_asked_unless_somebody_asks():
    assert read_task_file("").train.when == Conditions()
