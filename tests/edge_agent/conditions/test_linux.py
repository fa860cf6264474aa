"""Power and heat out of a tree that is laid out like /sys/class."""

from pathlib import Path

import pytest

from edge_agent.conditions.linux import linux
from edge_agent.conditions.readings import Readings


@pytest.fixture
def sys_class(tmp_path: Path) -> Path:
    (tmp_path / "power_supply").mkdir()
    (tmp_path / "thermal").mkdir()
    return tmp_path


def supply(sys_class: Path, name: str, **files: str) -> None:
    folder = sys_class / "power_supply" / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(f"{text}\n")


def zone(sys_class: Path, number: int, text: str) -> None:
    folder = sys_class / "thermal" / f"thermal_zone{number}"
    folder.mkdir()
    (folder / "temp").write_text(f"{text}\n")


def test_a_laptop_on_its_battery(sys_class):
    supply(sys_class, "AC", type="Mains", online="0")
    supply(sys_class, "BAT0", type="Battery", status="Discharging", capacity="63")
    assert linux(sys_class) == Readings(charging=False, battery=0.63)


@pytest.mark.parametrize("kind", ["Mains", "USB", "USB_PD", "Wireless"])
def test_external_power_counts_as_charging_even_when_the_battery_rests(sys_class, kind):
    supply(sys_class, "AC", type=kind, online="1")
    supply(sys_class, "BAT0", type="Battery", status="Not charging", capacity="80")
    assert linux(sys_class).charging is True


def test_a_supply_of_programmable_voltage_is_external_power(sys_class):
    supply(sys_class, "typec", type="USB", online="2")
    supply(sys_class, "BAT0", type="Battery", status="Not charging", capacity="80")
    assert linux(sys_class).charging is True


def test_the_charger_of_a_mouse_does_not_charge_the_machine(sys_class):
    supply(sys_class, "dock", type="USB", scope="Device", online="1")
    supply(sys_class, "BAT0", type="Battery", status="Discharging", capacity="80")
    assert linux(sys_class).charging is False


def test_an_empty_bay_is_no_battery(sys_class):
    supply(sys_class, "BAT1", type="Battery", present="0", status="Unknown", capacity="0")
    assert linux(sys_class) == Readings(charging=True, battery=1.0)
    supply(sys_class, "BAT0", type="Battery", present="1", status="Discharging", capacity="40")
    assert linux(sys_class) == Readings(charging=False, battery=0.4)


@pytest.mark.parametrize("status", ["Charging", "Full"])
def test_a_battery_that_charges_needs_no_other_witness(sys_class, status):
    supply(sys_class, "BAT0", type="Battery", status=status, capacity="100")
    assert linux(sys_class) == Readings(charging=True, battery=1.0)


def test_the_emptiest_of_several_batteries_counts(sys_class):
    for number, charge in enumerate((90, 20, 50)):
        supply(
            sys_class, f"BAT{number}", type="Battery", status="Discharging", capacity=str(charge)
        )
    assert linux(sys_class).battery == 0.2


def test_a_machine_without_a_battery_is_on_the_mains(sys_class):
    assert linux(sys_class) == Readings(charging=True, battery=1.0)


def test_the_battery_of_a_mouse_is_not_the_machines(sys_class):
    supply(sys_class, "mouse", type="Battery", scope="Device", status="Discharging", capacity="3")
    assert linux(sys_class) == Readings(charging=True, battery=1.0)


def test_the_hottest_zone_counts_and_a_broken_one_does_not(sys_class):
    for number, text in enumerate(("41000", "67500", "nonsense")):
        zone(sys_class, number, text)
    assert linux(sys_class).temperature_c == 67.5


def test_a_machine_that_tells_nothing_is_unknown(tmp_path):
    assert linux(tmp_path / "absent") == Readings()


def test_a_supply_that_refuses_to_tell_is_no_trouble(sys_class):
    (sys_class / "power_supply" / "odd").mkdir()
    supply(sys_class, "BAT0", type="Battery", status="Discharging")
    assert linux(sys_class) == Readings(charging=False)
