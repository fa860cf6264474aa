"""Which manifest counts, by docs/wire.md, section 5."""

from dataclasses import replace

import pytest

from edge_agent.offers import Offers
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion
from tests.edge_agent.played_lattice import Walk
from tests.edge_agent.played_server import Model


def manifest(version: int, epoch: int = 1) -> Manifest:
    return Model(version, epoch).manifest


def offers(*, canary: bool = False, **heard: Manifest) -> Offers:
    made = Offers(canary=canary)
    for channel, each in heard.items():
        made.hear(channel, each)  # type: ignore[arg-type]
    return made


def wanted(of: Offers, stored: Manifest | None, source: str) -> int | None:
    found = of.wanted(stored, source)
    return None if found is None else found.version


def test_the_first_model_is_wanted_and_the_one_that_is_here_is_not() -> None:
    assert wanted(offers(model=manifest(3)), None, "model") == 3
    assert wanted(offers(model=manifest(3)), manifest(3), "model") is None
    assert wanted(offers(), manifest(3), "model") is None


def test_an_equal_pair_is_the_model_that_is_here_whatever_else_it_says() -> None:
    other = replace(manifest(3), blob="k1-3b")
    assert wanted(offers(model=other), manifest(3), "model") is None


@pytest.mark.parametrize(("source", "back"), [("model", None), ("candidate", 3), ("pin", 3)])
def test_everybodys_channel_only_rises_but_for_who_comes_from_another(
    source: str, back: int | None
) -> None:
    assert wanted(offers(model=manifest(5)), manifest(4), source) == 5
    assert wanted(offers(model=manifest(3)), manifest(4), source) == back


@pytest.mark.parametrize("version", [3, 5])
def test_a_pin_counts_before_the_others_and_goes_either_way(version: int) -> None:
    both = offers(model=manifest(9), pin=manifest(version))
    assert wanted(both, manifest(4), "model") == version
    both.hear("pin", None)
    assert wanted(both, manifest(version), "pin") == 9


@pytest.mark.parametrize("version", [3, 5])
def test_a_canary_listens_to_the_candidate_which_may_go_back(version: int) -> None:
    both = offers(canary=True, model=manifest(9), candidate=manifest(version))
    assert wanted(both, manifest(4), "candidate") == version


@pytest.mark.parametrize("channel", ["pin", "candidate", "model"])
@pytest.mark.parametrize(("epoch", "found"), [(Epoch(1), None), (Epoch(3), ModelVersion(1))])
def test_a_lower_epoch_never_counts_and_a_higher_one_always(
    channel: str, epoch: Epoch, found: ModelVersion | None
) -> None:
    heard = offers(canary=channel == "candidate", **{channel: manifest(1, epoch)})
    assert wanted(heard, manifest(9, Epoch(2)), "model") == found


def test_what_came_from_several_channels_counts_as_everybodys() -> None:
    both = offers(canary=True, model=manifest(4), candidate=manifest(4))
    assert both.source(manifest(4)) == "model"
    assert offers(canary=True, candidate=manifest(4)).source(manifest(4)) == "candidate"


def test_a_model_on_a_lattice_is_the_same_whatever_leads_to_it_now() -> None:
    walk = Walk().go(5)
    here = walk.manifest()
    later = replace(here, oldest=here.serial, ladder=(1, 2), origin="o01234567")
    assert wanted(offers(model=here, pin=later), here, "model") is None
    assert wanted(offers(canary=True, candidate=later), here, "candidate") is None
    other = replace(later, model_digest=bytes(8))
    assert wanted(offers(model=here, pin=other), here, "model") == here.version
    assert wanted(offers(pin=walk.manifest(3)), here, "model") == 30
    plain = replace(manifest(here.version), epoch=here.epoch)
    assert wanted(offers(pin=plain), here, "model") == here.version
