"""`[strategy]`: how updates become versions, and who is believed. Pure tables of numbers.

What the types alone cannot check, `check_strategy` does: a ConfigError names field and remedy.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from schemas.errors import ConfigError

Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
NonNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Share: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1)]
Decay: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=0.9999)]

StrategyName: TypeAlias = Literal[
    "fedbuff", "fedasync", "fadas", "ca2fl", "fedfa", "fedavg", "fedadam"
]
StalenessKind: TypeAlias = Literal["paper", "constant", "polynomial", "hinge"]
Rule: TypeAlias = Literal[
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "centered-clipping",
]

SYNCHRONOUS: Final = frozenset({"fedavg", "fedadam"})
"""Strategies in rounds: an update of an older model is refused."""

BUFFERED: Final = frozenset({"fedbuff", "fadas", *SYNCHRONOUS})
"""Strategies that add up a buffer of K contributions: a rule may stand in the mean's place."""


ROWS_BYTES_MAX: Final = 1 << 31
"""What a strategy may keep of single contributions or models, in bytes."""


class StalenessOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy.staleness]`: the staleness weight and its parameters (FedAsync, section 5.2).

    Attributes:
        kind: `constant` 1, `polynomial` (1 + s)^-a, or `hinge` 1 up to b and 1 / (a (s - b) + 1)
            beyond, where s is the staleness in versions. `paper`: as the strategy's paper has it,
            (1 + s)^-1/2 for fedbuff and fedasync, 1 for all others.
        a: how fast the weight falls.
        b: the staleness at which the hinge begins to fall.
    """

    kind: StalenessKind = "paper"
    a: Positive = 0.5
    b: NonNegative = 4.0


class AdamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy.adam]`: the server's step under fadas and fedadam.

    Attributes:
        lr: eta.
        beta1: how much of the mean is remembered.
        beta2: how much of the mean square is remembered.
        eps: is added to the root of it; fedadam's paper calls it tau and prefers 1e-3.
        tau_c: fadas: up to this staleness eta is not lowered.
    """

    lr: Positive = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-8
    tau_c: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 1


class RobustOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy.robust]`: what is done so that a few devices cannot spoil the model.

    Recommended: clip = "median", mix = "nearest", rule = "trimmed-mean".

    Attributes:
        max_norm: an update with a longer delta (Euclidean) is refused; 0: none is.
        guard: an update must agree with the server's own, made from a small root data set:
            `aflguard` is near it, `zeno++` goes its way. `none`: no such set is needed.
        guard_radius: aflguard's lambda: so many of the server's own lengths away at most.
        zeno_rho: zeno++'s rho, which punishes length.
        zeno_slack: zeno++'s epsilon: how much worse a step may look.
        clip: of a buffer's contributions each is made no longer than their `median` length, or than
            `clip_norm` (`fixed`).
        clip_norm: for clip = "fixed", and centered-clipping's radius (0 there: the median length).
        mix: `nearest`: each is replaced by the mean of the K - f nearest to it, itself included.
        rule: what stands in the mean's place.
        byzantine: f, how many of K may lie; 0: a fifth of K, rounded down, at least one.
        rounds: steps of the iterative rules, geometric-median and centered-clipping.
    """

    max_norm: NonNegative = 0.0
    guard: Literal["none", "aflguard", "zeno++"] = "none"
    guard_radius: Positive = 1.5
    zeno_rho: NonNegative = 0.002
    zeno_slack: NonNegative = 0.1
    clip: Literal["none", "median", "fixed"] = "none"
    clip_norm: NonNegative = 0.0
    mix: Literal["none", "nearest"] = "none"
    rule: Rule = "mean"
    byzantine: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    rounds: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8

    @property
    def keeps_rows(self) -> bool:
        """Whether contributions must be kept one by one until their buffer is full."""
        return self.clip == "median" or self.mix != "none" or self.rule != "mean"


class StrategyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy]`: how updates become versions.

    Attributes:
        name: the rule. `fedbuff` folds K updates at once, `fedasync` mixes each one in, `fadas` is
            an adaptive fedbuff, `ca2fl` corrects it by what each device sent last, `fedfa` moves a
            window of the last K. In rounds: `fedavg`, `fedadam`.
        buffer_size: K; in rounds, how many updates a round takes.
        server_lr: eta_g of fedbuff, ca2fl and fedavg.
        momentum: server momentum beta of fedbuff and fedavg.
        alpha: FedAsync's mixing rate.
        staleness: the staleness weight.
        max_staleness: an update staler than this many versions is refused.
        views: FedAsync and FedFa keep this many published models; an older base is refused.
        flush_after_s: a buffer that has waited so long is folded in part, a round is over; 0:
            never.
        examples_unit: 0 makes num_examples weigh nothing; otherwise an update weighs
            min(num_examples, examples_unit) / examples_unit of its staleness weight. In rounds it
            is not heeded: there an update weighs its share of the round's examples.
        divide_by: fedbuff and fadas: a buffer's sum is divided by `buffer_size`, or by the sum of
            its `weights`.
        fairness: an update weighs (mean / own)^fairness, at most 1, by folded updates a device: who
            sends more than the mean counts less; 0: all count alike.
        fleet_size: N of ca2fl; 0: the devices heard of so far.
        contributions_max: a regional server may send so many devices' contributions in one update.
        adam: the adaptive step's.
        robust: who is believed.
    """

    name: StrategyName = "fedbuff"
    buffer_size: Count = 10
    server_lr: Positive = 1.0
    momentum: Decay = 0.0
    alpha: Share = 0.6
    staleness: StalenessOptions = StalenessOptions()
    max_staleness: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 64
    views: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    flush_after_s: NonNegative = 60.0
    examples_unit: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    divide_by: Literal["buffer_size", "weights"] = "buffer_size"
    fairness: Annotated[float, msgspec.Meta(ge=0, le=4)] = 0.0
    fleet_size: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    contributions_max: Count = 1
    adam: AdamOptions = AdamOptions()
    robust: RobustOptions = RobustOptions()

    @property
    def synchronous(self) -> bool:
        """Whether the model is made in rounds."""
        return self.name in SYNCHRONOUS

    @property
    def staleness_bound(self) -> int:
        """The staleness beyond which an update is refused."""
        return 0 if self.synchronous else self.max_staleness

    @property
    def byzantine(self) -> int:
        """f: how many of a buffer may lie."""
        return self.robust.byzantine or max(1, self.buffer_size // 5)


def gain_of(strategy: StrategyOptions) -> float:
    """By how much a fresh update moves the model in all.

    fedbuff: eta / ((1 - beta) K). In rounds an update is one of K. Adaptive steps have no gain in
    this sense: theirs is told as if the mean was added, 1 / K.
    """
    match strategy.name:
        case "fedbuff" | "fedavg":
            return strategy.server_lr / ((1.0 - strategy.momentum) * strategy.buffer_size)
        case "ca2fl":
            return strategy.server_lr / strategy.buffer_size
        case "fedasync":
            return strategy.alpha
        case "fadas" | "fedadam" | "fedfa":
            return 1.0 / strategy.buffer_size


def check_strategy(strategy: StrategyOptions, *, sparse: bool, size: int) -> None:
    """Check what the types alone cannot. Raises ConfigError.

    Args:
        strategy: the table.
        sparse: whether the task's codec leaves out coordinates.
        size: parameters that travel.
    """
    _check_plain(strategy)
    _check_robust(strategy, sparse=sparse)
    if strategy.name == "fedfa" or strategy.robust.keeps_rows:
        most = ROWS_BYTES_MAX // (4 * size)
        if strategy.buffer_size > most:
            remedy = f"must not exceed {most}: so many models of {size} parameters are kept"
            raise ConfigError("strategy.buffer_size", remedy)


def _check_plain(strategy: StrategyOptions) -> None:
    """Fields that mean nothing as the others stand."""
    told, plain = strategy.staleness, StalenessOptions()
    if told.kind == "paper" and (told.a, told.b) != (plain.a, plain.b):
        remedy = 'is not heeded with kind = "paper": name the kind, "polynomial" or "hinge"'
        raise ConfigError(f"strategy.staleness.{'b' if told.a == plain.a else 'a'}", remedy)
    if strategy.contributions_max > 1 and strategy.name != "fedbuff":
        remedy = f'must be 1 with strategy.name = "{strategy.name}": only fedbuff takes merged ones'
        raise ConfigError("strategy.contributions_max", remedy)
    if strategy.contributions_max > 1 and strategy.robust.keeps_rows:
        remedy = "must be 1 where contributions are compared: a merged one is no device's"
        raise ConfigError("strategy.contributions_max", remedy)
    if strategy.divide_by != "buffer_size" and strategy.name not in {"fedbuff", "fadas"}:
        remedy = f'means nothing with strategy.name = "{strategy.name}": leave it out'
        raise ConfigError("strategy.divide_by", remedy)


def _check_robust(strategy: StrategyOptions, *, sparse: bool) -> None:
    """Rules that cannot hold."""
    robust, table = strategy.robust, "strategy.robust"
    if robust.keeps_rows and strategy.name not in BUFFERED:
        remedy = f'strategy.name = "{strategy.name}" has no buffer to look at: use "fedbuff"'
        raise ConfigError(f"{table}.{_why_rows(robust)}", remedy)
    if robust.clip == "fixed" and not robust.clip_norm:
        raise ConfigError(f"{table}.clip_norm", 'must be above 0 with clip = "fixed"')
    if sparse and robust.guard == "aflguard":
        remedy = 'refuses everything in a sparse codec, of which noise is most of the length: use "'
        raise ConfigError(f"{table}.guard", f'"aflguard" {remedy}zeno++"')
    if sparse and robust.rule in {"median", "trimmed-mean"} and robust.mix == "none":
        remedy = 'collapses on sparse updates, of which most leave a coordinate out: add mix = "'
        raise ConfigError(f"{table}.rule", f'"{robust.rule}" {remedy}nearest"')
    if robust.mix != "none" or robust.rule != "mean":
        least = 2 * strategy.byzantine + 3
        if strategy.buffer_size < least:
            remedy = f"must be at least 2 byzantine + 3 = {least} for a rule to hold"
            raise ConfigError("strategy.buffer_size", remedy)


def _why_rows(robust: RobustOptions) -> str:
    if robust.rule != "mean":
        return "rule"
    return "mix" if robust.mix != "none" else "clip"
