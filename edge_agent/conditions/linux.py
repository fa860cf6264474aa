"""What Linux tells of power and heat below /sys/class (kernel: sysfs-class-power, -thermal)."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from edge_agent.conditions.readings import Readings

SYS: Final = Path("/sys/class")

_EXTERNAL: Final = ("Mains", "USB", "Wireless")
"""Types of supply that are external power; older kernels tell USB's kinds apart, as USB_PD."""

_ONLINE: Final = ("1", "2")
"""2: of programmable voltage."""


def linux(root: Path = SYS) -> Readings:
    """Read power supplies and thermal zones.

    A machine with a power_supply folder but no battery in it is on external power with all the
    charge it needs. Without that folder nothing is known.
    """
    return Readings(*_power(root / "power_supply"), temperature_c=_hottest(root / "thermal"))


def _power(folder: Path) -> tuple[bool | None, float | None]:
    """(whether on external power, charge): None where it cannot be told."""
    if not folder.is_dir():
        return None, None
    batteries = [each for each in _supplies(folder, "Battery") if _text(each / "present") != "0"]
    if not batteries:
        return True, 1.0
    online = any(_text(each / "online") in _ONLINE for each in _supplies(folder, *_EXTERNAL))
    charging = online or any(_text(b / "status") in {"Charging", "Full"} for b in batteries)
    charges = [int(text) for b in batteries if (text := _text(b / "capacity")).isdecimal()]
    return charging, min(charges) / 100 if charges else None


def _supplies(folder: Path, *kinds: str) -> Iterator[Path]:
    """The machine's own supplies of these types; not those of a mouse."""
    for supply in sorted(folder.iterdir()):
        kind = _text(supply / "type").partition("_")[0]
        if kind in kinds and _text(supply / "scope") != "Device":
            yield supply


def _hottest(folder: Path) -> float | None:
    """Degrees Celsius of the hottest zone; the files hold thousandths."""
    found: list[float] = []
    for zone in sorted(folder.glob("thermal_zone*/temp")):
        with suppress(ValueError):
            found.append(int(_text(zone)) / 1000)
    return max(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):  # a supply may vanish, or refuse to tell
        return ""
