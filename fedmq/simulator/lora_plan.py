"""What a LoRaWAN link can learn in a day: updates up, pieces of a model down. Pure.

Refuses (ConfigError) what the region or the operator forbids, with a remedy. What is an estimate
stands in `ESTIMATES`, with what it was measured on.
"""

from dataclasses import dataclass, replace
from math import floor, log2
from typing import Final

from broker.lorawan.events import size_refusal
from broker.lorawan.pieces import HEAD_BYTES, LENGTH_MAX
from broker.lorawan.regions import AS923, AU915, IN865, LEAST_FRAME, Network, Rate, Region
from fedmq.simulator.lora import MAC_BYTES, airtime_s
from schemas.errors import ConfigError
from schemas.short import AIR_BYTES

DAY_S: Final = 86_400.0

UNHURRIED_S: Final = 60.0
"""Between two frames where nothing forbids more: batteries and other people's frames do."""

REFRESH_SHARE: Final = 0.02
KEYFRAME_SHARE: Final = 0.18
ESTIMATES: Final = (
    f"a newer model takes {REFRESH_SHARE} B a parameter, a whole one {KEYFRAME_SHARE} B: digits, "
    "9,610 parameters, [publish] step = 0.125 (python -m benchmarks.lorawan)"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        region: whose law holds.
        network: whose fair use.
        sf: the devices' spreading factor.
        params: parameters that travel.
        bandwidth_hz: of the uplink's channel.
        devices: that share a gateway.
        loss: the share of frames that nobody hears, up and down each.
        every_s: a frame every so many seconds at most; 0: as many as are allowed.
    """

    region: Region
    network: Network
    sf: int
    params: int
    bandwidth_hz: int = 125_000
    devices: int = 20
    loss: float = 0.1
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer, for one device where nothing else is said.

    Attributes:
        region: and
        network: as asked.
        dr: the uplink's data rate.
        sf: its spreading factor.
        frame_bytes: of one frame, LoRaWAN's own 13 bytes aside.
        envelope_bytes: of those, for which model it was made.
        air_s: how long a frame is on the air.
        every_s: from one frame to the next.
        bound: what forbids more: duty cycle, fair use, --every, or nothing.
        frames_day: frames in 24 hours.
        air_day_s: time on the air in 24 hours.
        updates_day: frames that arrive.
        impulses: of an sq update in one frame, about.
        bytes_day: bytes up in 24 hours.
        ratio: how much smaller a frame is than a float32 update.
        down_bytes: that fit into a window.
        down_air_s: how long such a downlink is on the air, in RX1.
        downs_day: downlinks in 24 hours.
        down_bound: what forbids more: windows, fair use or the gateway's duty cycle.
        down_bytes_day: that arrive.
        refresh_windows: downlinks that a newer model takes, lost ones included, about.
        refreshes_day: newer models in 24 hours, about.
        keyframe_windows: downlinks that a whole model takes, lost ones included, about.
        buffer_size: the fleet's updates while a model goes down to everybody: [strategy].
        source: where the region's numbers stand.
    """

    region: str
    network: str
    dr: int
    sf: int
    frame_bytes: int
    envelope_bytes: int
    air_s: float
    every_s: float
    bound: str
    frames_day: int
    air_day_s: float
    updates_day: float
    impulses: int
    bytes_day: int
    ratio: float
    down_bytes: int
    down_air_s: float
    downs_day: float
    down_bound: str
    down_bytes_day: float
    refresh_windows: float
    refreshes_day: float
    keyframe_windows: float
    buffer_size: int
    source: str


def without_dwell(region: Region) -> Region:
    """The region where the network server has cleared the dwell time bits. Raises ConfigError."""
    if region.name not in {AS923.name, AU915.name}:
        remedy = f"{region.name} has no dwell time bit: it is for as923 and au915"
        if region.dwell_s:
            remedy = f"in {region.name} the dwell time is law, not a setting: drop --no-dwell"
        raise ConfigError("dwell", remedy)
    up = IN865.up if region.name == AS923.name else (*IN865.up, region.up[-1])
    down = IN865.down if region.name == AS923.name else region.down
    rx2 = down[2] if region.name == AS923.name else region.rx2
    return replace(region, up=up, down=down, rx2=rx2, dwell_s=0.0, dwell_down_s=0.0)


def plan(question: Question) -> Plan:
    """Answer. Raises ConfigError for what is forbidden."""
    rate = allowed(question)
    region, network = question.region, question.network
    air_s = airtime_s(rate.sf, rate.frame_bytes + MAC_BYTES, rate.bandwidth_hz)
    every_s, bound = _pause(question, air_s)
    frames = floor(DAY_S / every_s + 1e-9)
    heard = frames * (1.0 - question.loss)
    payload = rate.frame_bytes - AIR_BYTES
    down = region.down[rate.dr]
    down_air_s = airtime_s(down.sf, down.frame_bytes + MAC_BYTES, down.bandwidth_hz)
    downs, down_bound = _downs(question, down, down_air_s, heard)
    room = down.frame_bytes
    arrives = downs * (1.0 - question.loss)
    refresh = _windows(REFRESH_SHARE * question.params, room, question.loss)
    refreshes = downs / refresh
    return Plan(
        region=region.name,
        network=network.name,
        dr=rate.dr,
        sf=rate.sf,
        frame_bytes=rate.frame_bytes,
        envelope_bytes=AIR_BYTES,
        air_s=air_s,
        every_s=every_s,
        bound=bound,
        frames_day=frames,
        air_day_s=frames * air_s,
        updates_day=heard,
        impulses=impulses(payload, question.params),
        bytes_day=frames * rate.frame_bytes,
        ratio=4 * question.params / rate.frame_bytes,
        down_bytes=room,
        down_air_s=down_air_s,
        downs_day=downs,
        down_bound=down_bound,
        down_bytes_day=arrives * room,
        refresh_windows=refresh,
        refreshes_day=refreshes,
        keyframe_windows=_windows(KEYFRAME_SHARE * question.params, room, question.loss),
        buffer_size=max(1, round(question.devices * heard / max(refreshes, 1e-9))),
        source=region.sources,
    )


def allowed(question: Question) -> Rate:
    """The uplink's data rate. Raises ConfigError with what forbids it and what to do."""
    region, network, sf = question.region, question.network, question.sf
    if network.slowest_fixed_sf and sf > network.slowest_fixed_sf:
        remedy = f"{network.name} lets no device stay at SF{sf}: use SF{network.slowest_fixed_sf}"
        raise ConfigError("sf", f"{remedy} or lower, or a private network")
    known = [r for r in region.up if (r.sf, r.bandwidth_hz) == (sf, question.bandwidth_hz)]
    rate = known[0] if known else None
    if rate is None or not rate.frame_bytes:
        least_s = airtime_s(sf, MAC_BYTES, question.bandwidth_hz)
        if region.dwell_s and least_s > region.dwell_s:
            fits = ", ".join(sorted({str(r.sf) for r in _usable(region)}, key=int))
            remedy = (
                f"{region.name} allows {1000 * region.dwell_s:.0f} ms a transmission, an empty "
                f"frame takes {1000 * least_s:.0f} ms at SF{sf}: choose from SF {fits}"
            )
            raise ConfigError("sf", remedy)
        return region.rate(sf, question.bandwidth_hz)
    if rate.frame_bytes < LEAST_FRAME:
        remedy = f"{region.name} at SF{sf}: {size_refusal(rate.frame_bytes)}"
        raise ConfigError("sf", remedy)
    if KEYFRAME_SHARE * question.params > LENGTH_MAX:
        most = floor(LENGTH_MAX / KEYFRAME_SHARE)
        remedy = f"a whole model comes down in {LENGTH_MAX:,} bytes: train at most {most:,}, or "
        raise ConfigError("params", remedy + "let the gateway be the device")
    return rate


def impulses(payload: int, params: int) -> int:
    """How many impulses of sq fit: log2(n / k) + 2.5 bits each, and 29 around them."""
    found = 0
    while (found + 1) * (log2(max(1.0, params / (found + 1))) + 2.5) + 29 <= 8 * payload:
        found += 1
    return found


def _usable(region: Region) -> list[Rate]:
    return [r for r in region.up if r.frame_bytes >= LEAST_FRAME]


def _pause(question: Question, air_s: float) -> tuple[float, str]:
    """From one frame to the next, and what asks for so much."""
    found = {"nothing (every minute)": UNHURRIED_S}
    if question.region.duty_up < 1:
        found = {f"duty cycle {question.region.duty_up:.0%}": air_s / question.region.duty_up}
    if question.network.air_s:
        share = f"fair use {question.network.air_s:.0f} s a day"
        found[share] = DAY_S * air_s / question.network.air_s
    if question.every_s:
        found.pop("nothing (every minute)", None)
        found["--every"] = question.every_s
    bound = max(found, key=lambda name: found[name])
    return found[bound], bound


def _downs(question: Question, down: Rate, air_s: float, windows: float) -> tuple[float, str]:
    """Downlinks to one device in a day, and what forbids more."""
    region = question.region
    found = {"its windows": windows}
    if question.network.downlinks:
        found[f"fair use {question.network.downlinks} a day"] = float(question.network.downlinks)
    if region.duty_rx1 < 1 or region.duty_rx2 < 1:
        both = DAY_S * region.duty_rx1 / air_s
        if down.frame_bytes <= region.rx2.frame_bytes:
            rx2_air_s = airtime_s(
                region.rx2.sf, down.frame_bytes + MAC_BYTES, region.rx2.bandwidth_hz
            )
            both += DAY_S * region.duty_rx2 / rx2_air_s
        found[f"the gateway's duty cycle, shared by {question.devices}"] = both / question.devices
    bound = min(found, key=lambda name: found[name])
    return found[bound], bound


def _windows(size: float, room: int, loss: float) -> float:
    """Downlinks that so many bytes take: a piece is sent until it is there."""
    return -(-(HEAD_BYTES + size) // room) / (1.0 - loss)
