"""Which published model counts for this device: what three topics offer, and the rule. Pure.

    pin         the device's own topic: it is held at this version
    candidate   that of the canary devices, who get new versions first
    model       everybody's

A pin counts before the others; a canary listens to `candidate` instead of `model`. Everybody's
channel only goes up (a broker that was restored may retain an older manifest); the other two may
go back, and so may a device that comes from them.

Of a model that walks on a lattice every manifest tells how to get there at that time; the model is
the same one while epoch, version, serial number and digest are.
"""

from typing import Final, Literal, TypeAlias

from schemas.lattice import KEYFRAME
from schemas.messages import Manifest

Channel: TypeAlias = Literal["pin", "candidate", "model"]

CHANNELS: Final[tuple[Channel, ...]] = ("model", "candidate", "pin")
"""A manifest that came from several counts as everybody's."""


def is_lattice(manifest: Manifest) -> bool:
    """Whether a model is given by its place on a lattice, and others lead there by diffs."""
    return manifest.codec == KEYFRAME


def is_same(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests are of one model."""
    if is_lattice(one) and is_lattice(other):
        return _model(one) == _model(other)
    return one == other


def _model(manifest: Manifest) -> tuple[object, ...]:
    return manifest.epoch, manifest.version, manifest.serial, manifest.model_digest


class Offers:
    """What this connection has told so far."""

    def __init__(self, *, canary: bool) -> None:
        self.canary = canary
        self._heard: dict[Channel, Manifest] = {}

    def hear(self, channel: Channel, manifest: Manifest | None) -> None:
        """Note what a channel offers; None: nothing any more."""
        if manifest is None:
            self._heard.pop(channel, None)
        else:
            self._heard[channel] = manifest

    @property
    def channel(self) -> Channel:
        """The channel that counts."""
        if "pin" in self._heard:
            return "pin"
        return "candidate" if self.canary else "model"

    @property
    def counts(self) -> Manifest | None:
        """What it offers; None while nothing was heard."""
        return self._heard.get(self.channel)

    def source(self, manifest: Manifest) -> Channel:
        """Where a manifest came from."""
        return next((c for c in CHANNELS if self._heard.get(c) == manifest), "model")

    def wanted(self, stored: Manifest | None, source: str) -> Manifest | None:
        """What to fetch in place of the stored model, which came from `source`; None: nothing."""
        offered = self.counts
        if offered is None or stored is None:
            return offered
        if offered.epoch != stored.epoch:
            return offered if offered.epoch > stored.epoch else None
        if self.channel == "model" and source == "model":
            return offered if offered.version > stored.version else None
        return None if is_same(offered, stored) else offered
