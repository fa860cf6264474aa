"""What a link does to what is sent over it, in virtual time. Pure: time and chance come in.

A `LinkModel` says what a link is like; a `Link` is one such link in use. It never sleeps: it
answers at which second what is sent now will arrive. Two ways of sending:

    transmit       one datagram: it may vanish, come twice or late
    stream_delay   a piece of a TCP stream: it always arrives, in order; what is lost costs time

Refuses a frame that is larger than the link's frames; it does not fragment. Time must not run
backwards between calls. Left out on purpose: slow start, fast retransmit, the other devices of a
cell.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from fedmq.simulator.lora import MAC_BYTES, airtime_s
from fedmq.simulator.outages import Outage, Outages, Window, meanwhile, next_outage, windows
from fedmq.simulator.ranges import not_negative, positive, share
from schemas.errors import ConfigError, InvariantError

Direction: TypeAlias = Literal["up", "down"]
"""From the device to the broker, and back."""

TCP_IP_BYTES: Final = 40
"""What IPv4 and TCP add to a segment without options (RFC 791, RFC 9293)."""

RTO_LEAST_S: Final = 1.0
"""The shortest retransmission timeout (RFC 6298, 2.4)."""

RTO_MOST_S: Final = 60.0
"""Where doubling ends (RFC 6298, 2.5)."""

RETRIES: Final = 15
"""So often a segment may fail in a row before TCP gives up (Linux, tcp_retries2)."""

FAR: Final = 4.0
"""After so many mean windows without a call, the outages between are skipped, not drawn."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Gilbert-Elliott: a chain of a good and a bad state that takes one step a frame.

    Sources: E. N. Gilbert, BSTJ 39 (1960); E. O. Elliott, BSTJ 42 (1963).

    Attributes:
        p_good_to_bad: probability of a step from good to bad.
        p_bad_to_good: and back.
        loss_good: probability that a frame is lost in the good state.
        loss_bad: and in the bad one.
    """

    p_good_to_bad: float = 0.0
    p_bad_to_good: float = 1.0
    loss_good: float = 0.0
    loss_bad: float = 0.0

    def __post_init__(self) -> None:
        share("loss.p_good_to_bad", self.p_good_to_bad)
        share("loss.p_bad_to_good", self.p_bad_to_good)
        share("loss.loss_good", self.loss_good)
        share("loss.loss_bad", self.loss_bad)

    @property
    def bad_share(self) -> float:
        """The share of frames that meet the bad state, in the long run."""
        steps = self.p_good_to_bad + self.p_bad_to_good
        return self.p_good_to_bad / steps if steps else 0.0

    @property
    def mean(self) -> float:
        """The share of frames that are lost, in the long run."""
        bad = self.bad_share
        return bad * self.loss_bad + (1.0 - bad) * self.loss_good


@dataclass(frozen=True, slots=True)
class Sleep:
    """PSM, eDRX or LoRaWAN class A: the device hears only in windows; it may speak at any time.

    Attributes:
        period_s: from the begin of one window to the next; infinite means it never wakes by itself.
        awake_s: how long a window is, and how long the device listens after it has sent.
    """

    period_s: float
    awake_s: float

    def __post_init__(self) -> None:
        positive("sleep.period_s", self.period_s)
        positive("sleep.awake_s", self.awake_s)
        if self.awake_s > self.period_s:
            raise ConfigError("sleep.awake_s", "must not exceed sleep.period_s")


@dataclass(frozen=True, slots=True)
class LinkModel:
    """What a link is like. The defaults are a perfect one. Times in seconds.

    Attributes:
        rate_up: bytes a second from the device.
        rate_down: bytes a second to the device.
        delay_s: the shortest one-way delay.
        jitter_s: what is added to it at the most, uniformly.
        loss: of frames, for each direction on its own; None loses nothing.
        outages: when the link is down; None is never.
        duty: the share of time a sender may be on the air; after each frame it is silent for
            air / duty - air (ETSI EN 300 220, LoRaWAN).
        sleep: when the device hears; None is always.
        frame_bytes: the largest frame: the MTU of an IP link, the payload of a LoRaWAN one.
        lora_sf: a LoRa spreading factor; then Semtech's formula for a frame and LoRaWAN's 13 bytes
            gives the time on the air, and the rates mean nothing.
        reorder: the share of datagrams that others overtake.
        reorder_s: how much later those come at the most.
        duplicate: the share of datagrams that come twice.
        queue_s: how long a datagram may wait for those before it; else it is dropped.
    """

    rate_up: float = math.inf
    rate_down: float = math.inf
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: Loss | None = None
    outages: Outages | None = None
    duty: float = 1.0
    sleep: Sleep | None = None
    frame_bytes: int = 1500
    lora_sf: int | None = None
    reorder: float = 0.0
    reorder_s: float = 0.1
    duplicate: float = 0.0
    queue_s: float = math.inf

    def __post_init__(self) -> None:
        for name in ("rate_up", "rate_down", "duty", "queue_s"):
            positive(name, getattr(self, name))
        for name in ("delay_s", "jitter_s", "reorder_s"):
            not_negative(name, getattr(self, name))
        for name in ("duty", "reorder", "duplicate"):
            share(name, getattr(self, name))
        if self.lora_sf is not None:
            airtime_s(self.lora_sf, self.frame_bytes + MAC_BYTES)
        elif self.frame_bytes <= TCP_IP_BYTES:
            remedy = f"must be more than {TCP_IP_BYTES}, the headers of TCP/IP"
            raise ConfigError("frame_bytes", remedy)

    def air_s(self, size: int, direction: Direction) -> float:
        """Seconds on the air of a frame of `size` bytes."""
        if self.lora_sf is not None:
            return airtime_s(self.lora_sf, size + MAC_BYTES)
        return size / (self.rate_up if direction == "up" else self.rate_down)


class Delivery(NamedTuple):
    """A datagram's arrival, in seconds on the link's clock."""

    at_s: float


class _Way:
    """What one direction remembers."""

    __slots__ = ("bad", "free_at", "last_at")

    def __init__(self, *, bad: bool) -> None:
        self.bad = bad
        self.free_at = 0.0
        self.last_at = 0.0


class Link:
    """One link in use. The generator may be shared with others; it is drawn from call by call."""

    __slots__ = (
        "_ahead",
        "_awake_until",
        "_down",
        "_known_until",
        "_phase_s",
        "_rng",
        "_up",
        "model",
    )

    def __init__(self, model: LinkModel, rng: random.Random) -> None:
        self.model = model
        self._rng = rng
        loss = model.loss
        self._up = _Way(bad=loss is not None and rng.random() < loss.bad_share)
        self._down = _Way(bad=loss is not None and rng.random() < loss.bad_share)
        self._ahead: list[Outage] = []
        self._known_until = 0.0 if model.outages else math.inf
        self._awake_until = 0.0
        self._phase_s = 0.0
        if model.sleep and model.sleep.period_s < math.inf:
            self._phase_s = rng.uniform(0.0, model.sleep.period_s)

    def transmit(self, now_s: float, size: int, direction: Direction) -> tuple[Delivery, ...]:
        """Send one datagram of `size` bytes now: when it arrives. Lost is empty, doubled is two.

        A frame waits for those before it, for the duty cycle and, downwards, for the device to
        wake. Without reordering, none overtakes another.
        """
        model = self.model
        if size > model.frame_bytes:
            raise InvariantError(f"{size} bytes in a frame of at most {model.frame_bytes}")
        way = self._up if direction == "up" else self._down
        if way.free_at - now_s > model.queue_s:
            return ()
        self._forget(now_s)
        start = self._hears_at(max(now_s, way.free_at), direction)
        if start == math.inf:
            return ()
        air = model.air_s(size, direction)
        way.free_at = start + air / model.duty
        self._listen(start + air, direction)
        if self._outage_in(start, start + air) or self._lost(way):
            return ()
        return self._deliver(way, start + air)

    def stream_delay(self, now_s: float, size: int, direction: Direction) -> float:
        """Send `size` bytes of a TCP stream now: seconds until the last of them has arrived.

        A lost segment costs a retransmission timeout, which doubles (RFC 6298); an outage, the
        timeouts that fall into it. Infinite where TCP would give up, or where the device never
        wakes.
        """
        model = self.model
        way = self._up if direction == "up" else self._down
        self._forget(now_s)
        end = free = self._hears_at(max(now_s, way.free_at), direction)
        head = 0 if model.lora_sf is not None else TCP_IP_BYTES
        room = model.frame_bytes - head
        full, rest = divmod(size, room)
        if model.loss is None and model.outages is None:
            if full:
                air = model.air_s(room + head, direction)
                free += full * air / model.duty
                end = free - air / model.duty + air
            if rest:
                air = model.air_s(rest + head, direction)
                end = free + air
                free += air / model.duty
        else:
            for segment in [room] * full + ([rest] if rest else []):
                end = self._segment(free, model.air_s(segment + head, direction), way)
                free = end + model.air_s(segment + head, direction) * (1.0 / model.duty - 1.0)
        if end == math.inf:
            return end
        way.free_at = free
        self._listen(end, "up")  # either way the device sends: data or the acknowledgement
        at = max(way.last_at, end + self._latency())
        way.last_at = at
        return at - now_s

    def windows(self) -> Iterator[Window]:
        """Yield the online windows of such a link, from now on; none where it has no outages."""
        return iter(()) if self.model.outages is None else windows(self.model.outages, self._rng)

    def online_at(self, now_s: float) -> bool:
        """Whether the link is up (the device may still be asleep)."""
        self._forget(now_s)
        return self._outage_in(now_s, now_s) is None

    def hears_at(self, now_s: float) -> float:
        """Return the first second, from now on, at which the device listens to the network."""
        return self._hears_at(now_s, "down")

    def _hears_at(self, now_s: float, direction: Direction) -> float:
        sleep = self.model.sleep
        if sleep is None or direction == "up" or now_s < self._awake_until:
            return now_s
        if sleep.period_s == math.inf:
            return math.inf
        since = (now_s + self._phase_s) % sleep.period_s
        return now_s if since < sleep.awake_s else now_s + sleep.period_s - since

    def _listen(self, end_s: float, direction: Direction) -> None:
        if self.model.sleep and direction == "up":
            self._awake_until = max(self._awake_until, end_s + self.model.sleep.awake_s)

    def _latency(self) -> float:
        model = self.model
        return model.delay_s + (self._rng.uniform(0.0, model.jitter_s) if model.jitter_s else 0.0)

    def _lost(self, way: _Way) -> bool:
        loss = self.model.loss
        if loss is None:
            return False
        drawn = self._rng.random()
        way.bad = drawn >= loss.p_bad_to_good if way.bad else drawn < loss.p_good_to_bad
        return self._rng.random() < (loss.loss_bad if way.bad else loss.loss_good)

    def _deliver(self, way: _Way, sent_s: float) -> tuple[Delivery, ...]:
        model, rng = self.model, self._rng
        at = max(way.last_at, sent_s + self._latency())
        if model.reorder and rng.random() < model.reorder:
            first = Delivery(at + rng.uniform(0.0, model.reorder_s))
        else:
            way.last_at = at
            first = Delivery(at)
        if model.duplicate and rng.random() < model.duplicate:
            return first, Delivery(first.at_s + rng.uniform(0.0, model.jitter_s))
        return (first,)

    def _segment(self, start_s: float, air_s: float, way: _Way) -> float:
        """Send one segment until it is through: the end of its last time on the air."""
        model = self.model
        wait = max(RTO_LEAST_S, 2 * model.delay_s + 3 * model.jitter_s)  # SRTT + 4 RTTVAR
        losses = 0
        while True:
            outage = self._outage_in(start_s, start_s + air_s)
            if outage is None and not self._lost(way):
                return start_s + air_s
            losses += 1  # an outage, however long, is one
            if losses > RETRIES or (outage and outage.end_s == math.inf):
                return math.inf
            before = start_s
            while start_s == before or (outage and start_s < outage.end_s):
                start_s += max(wait, air_s / model.duty)
                wait = min(2 * wait, RTO_MOST_S)

    def _outage_in(self, start_s: float, end_s: float) -> Outage | None:
        """Return the outage that touches this time, if any. Draws as far ahead as it must."""
        while self._known_until <= end_s:
            outages = self.model.outages
            ahead = next_outage(outages, self._known_until, self._rng) if outages else None
            if ahead is None:
                self._known_until = math.inf
                break
            self._ahead.append(ahead)
            self._known_until = ahead.end_s
        for outage in reversed(self._ahead):
            if outage.end_s <= start_s:
                break
            if outage.start_s <= end_s:
                return outage
        return None

    def _forget(self, now_s: float) -> None:
        while self._ahead and self._ahead[0].end_s <= now_s:
            self._ahead.pop(0)
        outages = self.model.outages
        if outages and not outages.scheduled and now_s - self._known_until > FAR * outages.online_s:
            ongoing = meanwhile(outages, self._known_until, now_s, self._rng)
            self._known_until = now_s
            if ongoing:
                self._ahead.append(ongoing)
                self._known_until = ongoing.end_s
