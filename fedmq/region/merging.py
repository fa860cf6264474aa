"""What a site's model has learnt, as one merged update. Pure.

A site's fold is FedBuff with eta = 1 and no momentum: every version adds B / K, where B is the sum
of its weighted deltas, and a flush of fewer than K divides by K, too. So between the model that
came from the upstream, w_0, and the site's, w, whatever the versions in between:

    sum of all n weighted deltas = K (w - w_0)
    their mean                   = K / n (w - w_0)

The upstream adds n S(s) times that mean: each device weighs there as if it had sent by itself, up
to its staleness weight here (Nguyen et al., arXiv 2106.06639, Algorithm 1, on both levels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregator.state import Release, Tally
from schemas.errors import ConfigError
from schemas.params import Params, ParamSpec
from schemas.task import TaskSpec

_TABLE: Final = "the site's task"


@dataclass(frozen=True, slots=True)
class Cut:
    """A point in the site's history: up to here contributions are in an update.

    Attributes:
        version: the site's.
        updates: that the site had folded until then.
        weight: the sum of the weights of what it had folded by the commit that told it, ...
        folded: ... and how much that was.
    """

    version: int
    updates: int
    weight: float
    folded: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A round of the site: where it began.

    Attributes:
        version: the site's version with which it did.
        digest: of that version's parameters.
        base: digest of the upstream's parameters: another one where something was carried over.
        updates: that the site had folded until then, but for what was carried over.
        weight: the sum of the weights of as much as that, ...
        folded: ... and how much that was, by the commit that told it.
        carried: contributions that came before and go up with this round's.
    """

    version: int
    digest: bytes
    base: bytes
    updates: int
    weight: float
    folded: int
    carried: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a round, over restarts.

    Attributes:
        begun: where it began.
        created: updates that the outbox had ever created when this was written.
        told: up to where the round's contributions are in an update that is in the outbox.
        offered: up to where they are in one that was made, and may or may not be there.
        beginning: the round after this one, which may or may not have begun.
    """

    begun: Begun
    created: int
    told: Cut | None = None
    offered: Cut | None = None
    beginning: Begun | None = None


def settled(kept: Kept, created: int) -> Kept | None:
    """What is true now that the outbox has created so many updates.

    An outbox counts an update in the transaction in which it takes it, and an offer is written down
    before it is made: so the count tells whether it was taken, wherever a process died. None: more
    was taken than is known of, or another outbox is here; then nothing of this may go up again.
    """
    if created == kept.created:
        return replace(kept, offered=None)
    if created == kept.created + 1 and kept.offered is not None:
        return replace(kept, created=created, told=kept.offered, offered=None)
    return None


@dataclass(frozen=True, slots=True)
class Since:
    """What a new round carries over: what came after a point of the round before.

    Attributes:
        begun: that round.
        cut: the point up to which its contributions went up, or are given up.
        reference: the site's parameters there; None: they are not kept any more.
    """

    begun: Begun
    cut: Cut
    reference: Params | None


def late(since: Since | None, folded: int) -> int:
    """How many contributions have come since."""
    return 0 if since is None else max(0, folded - since.cut.updates)


def begins(beginning: Begun, releases: Sequence[Release], version: int) -> bool | None:
    """Whether a round has begun that was about to; None: it cannot be told any more.

    Args:
        beginning: the round.
        releases: of the site, with all that was in its log when this was asked.
        version: the newest of the site.
    """
    for release in releases:
        if release.version == beginning.version:
            return _is(release, beginning.digest)
    return False if version < beginning.version else None


def check_site(spec: TaskSpec) -> int:
    """K, of a site whose sum of deltas can be read off its model.

    Raises ConfigError: another strategy than plain FedBuff; a rule that keeps contributions one by
    one, for then K devices and not K contributions make a version; merged contributions of yet
    another region; versions that are not published at once, or rounded to a lattice; tensors that
    stay on the devices.
    """
    strategy, publish = spec.strategy, spec.publish
    remedies = (
        (strategy.name == "fedbuff", "strategy.name", 'must be "fedbuff"'),
        (strategy.server_lr == 1.0, "strategy.server_lr", "must be 1: the upstream has the rate"),
        (strategy.momentum == 0.0, "strategy.momentum", "must be 0: the upstream has the momentum"),
        (strategy.divide_by == "buffer_size", "strategy.divide_by", 'must be "buffer_size"'),
        (strategy.contributions_max == 1, "strategy.contributions_max", "must be 1 in a site"),
        (
            not strategy.robust.keeps_rows,
            "strategy.robust",
            'must have rule = "mean", no mix, and no clip = "median" in a site',
        ),
        (publish.every == 1, "publish.every", "must be 1 in a site"),
        (not publish.lattice, "publish.lattice", "must be false in a site: it rounds the model"),
        (not spec.gate.holds, "gate", "must be left out in a site: the upstream judges"),
        (
            spec.params.wire_size == spec.params.size,
            "params",
            "must have no local or frozen tensors in a site",
        ),
    )
    for holds, field, remedy in remedies:
        if not holds:
            raise ConfigError(f"{_TABLE}: {field}", remedy)
    return strategy.buffer_size


def check_tensors(spec: ParamSpec, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises ConfigError: the upstream's tensors are not the site's."""
    ours = {tensor.name: tensor.shape for tensor in spec.tensors}
    theirs = {name: tensor.shape for name, tensor in tensors.items()}
    if ours != theirs:
        other = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        remedy = f"differ from the upstream's in {', '.join(other)}: create it with the same ones"
        raise ConfigError(f"{_TABLE}: params", remedy)


def found(releases: Sequence[Release], digest: bytes) -> Release | None:
    """The newest published release of these parameters."""
    same = [r for r in releases if r.status == "published" and _is(r, digest)]
    return max(same, key=lambda release: release.version, default=None)


def goes_on(begun: Begun, releases: Sequence[Release]) -> bool:
    """Whether the site still learns what this round has begun.

    Not so when somebody has rolled the site back since, or it is another task of the same name.
    A beginning that is not kept any more (publish.keep) is believed, if newer ones are.
    """
    for release in releases:
        if release.version >= begun.version and release.status == "withdrawn":
            return False
        if release.version == begun.version and not _is(release, begun.digest):
            return False
    return any(release.version >= begun.version for release in releases)


def ripe(
    begun: Begun, releases: Sequence[Release], wanted: int, *, in_time: bool
) -> Release | None:
    """The release to return: the first with so many contributions; None: there is none yet.

    It may be the one with which the round began, if so many were carried over.

    The first, not the newest, so that an update is of fewer than wanted + K contributions, and the
    upstream's bound can be chosen. When the time is over: the newest that has any.
    """
    ours = [r for r in releases if r.status == "published" and r.updates > begun.updates]
    ours = sorted((r for r in ours if r.version >= begun.version), key=lambda r: r.version)
    enough = [r for r in ours if r.updates - begun.updates >= wanted]
    if enough:
        return enough[0]
    return None if in_time or not ours else ours[-1]


def merged(base: Params, now: Params, *, buffer_size: int, contributions: int) -> Params:
    """The model that has moved from `base` by the mean of all weighted deltas.

    Args:
        base: the upstream's, w_0, float32, shape (size,).
        now: the site's, w.
        buffer_size: K of the site.
        contributions: n, how many made w of w_0.

    Returns:
        w_0 + K / n (w - w_0), float32; w itself where n is K.
    """
    if contributions == buffer_size:
        return now
    start = base.astype(np.float64)
    moved = (now.astype(np.float64) - start) * (buffer_size / contributions)
    return (start + moved).astype(np.float32)


def carried_over(
    start: Params,
    reference: Params,
    now: Params,
    waiting: Params,
    *,
    buffer_size: int,
    share: float = 1.0,
) -> Params:
    """The model with which a round begins, when contributions have come since the last update.

    Args:
        start: the upstream's, w_0', float32, shape (size,).
        reference: the site's of which the last update was made, w_told.
        now: the site's, w.
        waiting: the sum of weighted deltas in its buffer, B.
        buffer_size: K.
        share: of what has come that is carried over.

    Returns:
        w_0' + share ((w - w_told) + B / K), float32.
    """
    moved = now.astype(np.float64) - reference + waiting.astype(np.float64) / buffer_size
    return (start + share * moved).astype(np.float32)


def mean_weight(begun: Begun, tally: Tally) -> float:
    """The mean weight of what was folded since; above 0, at most 1.

    By the last commit: a contribution that waits for the site's next version is counted, too.
    """
    count = tally.folded - begun.folded
    mean = (tally.weight - begun.weight) / count if count > 0 else 1.0
    return min(1.0, max(mean, 2.0**-20))


def _is(release: Release, digest: bytes) -> bool:
    """A manifest may tell only the beginning of a digest."""
    return digest.startswith(release.named.model_digest)
