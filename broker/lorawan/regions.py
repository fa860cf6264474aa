"""LoRaWAN's regions: data rates, frame sizes, duty cycle, dwell time. Pure tables.

    RP002   LoRa Alliance, RP002-1.0.4, "LoRaWAN Regional Parameters": data rates, the largest
            payload N of an application when a repeater may stand between and FOpts is empty, RX1's
            data rate at offset 0, RX2's defaults. Compared with ChirpStack's lrwn/src/region.
    ETSI    EN 300 220-2, annex B: what a sender may use of an hour in the sub-bands of EU868
    FCC     47 CFR 15.247 (a)(1)(i): 400 ms on one channel of a hopping system
    ARIB    STD-T108: 400 ms a transmission, as RP002's dwell time bit says it for AS923

What belongs to an operator stands in `NETWORKS`. Refuses names that it does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from schemas.errors import ConfigError

LEAST_FRAME: Final = 12
"""A shorter frame is refused: of the 11 bytes of US915's DR0 an envelope takes 4, a scale 2."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One data rate.

    Attributes:
        dr: its number in the region.
        sf: the spreading factor.
        bandwidth_hz: of the channel.
        frame_bytes: the largest application payload (RP002's N); 0: the region forbids it.
    """

    dr: int
    sf: int
    bandwidth_hz: int
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class Region:
    """What one region allows.

    Attributes:
        name: as people write it.
        up: data rates of devices, slowest first.
        down: of what answers an uplink in RX1 at offset 0, by the uplink's number.
        rx2: of RX2.
        duty_up: the share of time a device may be on the air.
        duty_rx1: what a gateway may be, in the channels of RX1.
        duty_rx2: and in RX2's.
        dwell_s: the longest transmission at 125 kHz upwards; 0: no bound.
        dwell_down_s: and downwards.
        sources: where all this stands.
    """

    name: str
    up: tuple[Rate, ...]
    down: Mapping[int, Rate]
    rx2: Rate
    duty_up: float
    duty_rx1: float
    duty_rx2: float
    dwell_s: float
    dwell_down_s: float
    sources: str

    def rate(self, sf: int, bandwidth_hz: int = 125_000) -> Rate:
        """The uplink data rate with this spreading factor. Raises ConfigError."""
        for rate in self.up:
            if (rate.sf, rate.bandwidth_hz) == (sf, bandwidth_hz):
                return rate
        there = ", ".join(f"{r.sf} ({r.bandwidth_hz // 1000} kHz)" for r in self.up)
        remedy = f"{self.name} has no SF{sf} at {bandwidth_hz // 1000} kHz: choose from {there}"
        raise ConfigError("sf", remedy)

    def room_down(self, rate: Rate) -> int:
        """Bytes that fit into the answer to an uplink, in RX1: what a network server tries first.

        A network server that prefers RX2 fits less; it says so, and the setting `downlink_bytes`
        then says how much.
        """
        return self.down[rate.dr].frame_bytes


def _slow_to_fast(sizes: tuple[int, ...]) -> tuple[Rate, ...]:
    """DR0 to DR5: SF12 to SF7 at 125 kHz."""
    return tuple(Rate(dr, 12 - dr, 125_000, size) for dr, size in enumerate(sizes))


_EVEN: Final = _slow_to_fast((51, 51, 51, 115, 222, 222))
_DWELLING: Final = _slow_to_fast((0, 0, 11, 53, 125, 222))
_WIDE: Final = {dr: Rate(dr, 20 - dr, 500_000, n) for dr, n in ((8, 53), (9, 129))} | {
    dr: Rate(dr, 20 - dr, 500_000, 222) for dr in (10, 11, 12, 13)
}
"""US915's and AU915's downlinks: SF12 to SF7 at 500 kHz."""


def _same(rates: tuple[Rate, ...]) -> Mapping[int, Rate]:
    return MappingProxyType({rate.dr: rate for rate in rates})


EU868: Final = Region(
    "eu868",
    up=_EVEN,
    down=_same(_EVEN),
    rx2=_EVEN[0],  # 869.525 MHz, DR0
    duty_up=0.01,  # 868.0 to 868.6 MHz, where every device's default channels lie
    duty_rx1=0.01,  # RX1 answers on the uplink's channel
    duty_rx2=0.1,  # 869.4 to 869.65 MHz
    dwell_s=0.0,
    dwell_down_s=0.0,
    sources="RP002-1.0.4 EU863-870; ETSI EN 300 220-2",
)

IN865: Final = Region(
    "in865",
    up=_EVEN,
    down=_same(_EVEN),
    rx2=_EVEN[2],  # 866.55 MHz, DR2
    duty_up=1.0,
    duty_rx1=1.0,
    duty_rx2=1.0,
    dwell_s=0.0,
    dwell_down_s=0.0,
    sources="RP002-1.0.4 IN865-867: neither duty cycle nor dwell time",
)

AS923: Final = Region(
    "as923",
    up=_DWELLING,
    down=_same(_DWELLING),
    rx2=_DWELLING[2],  # 923.2 MHz, DR2
    duty_up=0.01,
    duty_rx1=1.0,
    duty_rx2=1.0,
    dwell_s=0.4,  # both dwell time bits are set until the network server says otherwise
    dwell_down_s=0.4,
    sources="RP002-1.0.4 AS923, both dwell time bits set, its join channels' 1 %; ARIB STD-T108",
)

AU915: Final = Region(
    "au915",
    up=(*_DWELLING, Rate(6, 8, 500_000, 222)),
    down=MappingProxyType({dr: _WIDE[min(dr + 8, 13)] for dr in range(7)}),
    rx2=_WIDE[8],  # 923.3 MHz, DR8
    duty_up=1.0,
    duty_rx1=1.0,
    duty_rx2=1.0,
    dwell_s=0.4,
    dwell_down_s=0.0,
    sources="RP002-1.0.4 AU915-928 with its uplink dwell time bit set, the default",
)

US915: Final = Region(
    "us915",
    up=(
        Rate(0, 10, 125_000, 11),
        Rate(1, 9, 125_000, 53),
        Rate(2, 8, 125_000, 125),
        Rate(3, 7, 125_000, 222),
        Rate(4, 8, 500_000, 222),
    ),
    down=MappingProxyType({dr: _WIDE[min(dr + 10, 13)] for dr in range(5)}),
    rx2=_WIDE[8],  # 923.3 MHz, DR8
    duty_up=1.0,
    duty_rx1=1.0,
    duty_rx2=1.0,
    dwell_s=0.4,
    dwell_down_s=0.0,
    sources="RP002-1.0.4 US902-928; 47 CFR 15.247",
)

REGIONS: Final[Mapping[str, Region]] = MappingProxyType(
    {region.name: region for region in (EU868, US915, AS923, AU915, IN865)}
)
"""Every region that has a name here."""


@dataclass(frozen=True, slots=True)
class Network:
    """What an operator allows on top of the region's law.

    Attributes:
        name: as people write it.
        air_s: seconds a device may be on the air in 24 hours; 0: no bound.
        downlinks: downlinks to a device in 24 hours, MAC answers included; 0: no bound.
        slowest_fixed_sf: no device may be set to a higher spreading factor for good; 0: any.
        source: where this stands.
    """

    name: str
    air_s: float = 0.0
    downlinks: int = 0
    slowest_fixed_sf: int = 0
    source: str = ""


NETWORKS: Final[Mapping[str, Network]] = MappingProxyType(
    {
        "private": Network("private", source="only the region's law"),
        "ttn": Network(
            "ttn",
            air_s=30.0,
            downlinks=10,
            slowest_fixed_sf=10,
            source="The Things Network, fair use policy (forum topics 1300 and 69798)",
        ),
    }
)
"""Operators by name."""


def region(name: str) -> Region:
    """Look a region up. Raises ConfigError."""
    if name not in REGIONS:
        raise ConfigError("region", f"{name!r} is unknown: choose one of {', '.join(REGIONS)}")
    return REGIONS[name]


def network(name: str) -> Network:
    """Look an operator up. Raises ConfigError."""
    if name not in NETWORKS:
        raise ConfigError("network", f"{name!r} is unknown: choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]
