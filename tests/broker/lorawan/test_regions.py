import pytest

from broker.lorawan.regions import LEAST_FRAME, REGIONS, network, region
from fedmq.simulator.lora import MAC_BYTES, airtime_s
from schemas.errors import ConfigError


@pytest.mark.parametrize("name", REGIONS)
def test_no_full_frame_is_longer_on_the_air_than_the_region_allows(name):
    here = region(name)
    for rate in here.up:
        if here.dwell_s and rate.bandwidth_hz == 125_000 and rate.frame_bytes:
            assert airtime_s(rate.sf, rate.frame_bytes + MAC_BYTES) <= here.dwell_s
    for rate in here.down.values():
        if here.dwell_down_s and rate.frame_bytes:
            assert airtime_s(rate.sf, rate.frame_bytes + MAC_BYTES) <= here.dwell_down_s


@pytest.mark.parametrize("name", REGIONS)
def test_every_uplink_has_an_answer_and_faster_frames_are_not_smaller(name):
    here = region(name)
    assert {rate.dr for rate in here.up} <= here.down.keys()
    sizes = [rate.frame_bytes for rate in here.up]
    assert sizes == sorted(sizes)


def test_frames_have_the_sizes_of_the_reference():
    sizes = {name: [rate.frame_bytes for rate in region(name).up] for name in REGIONS}
    assert sizes["eu868"] == sizes["in865"] == [51, 51, 51, 115, 222, 222]
    assert sizes["us915"] == [11, 53, 125, 222, 222]
    assert sizes["as923"] == [0, 0, 11, 53, 125, 222]
    assert sizes["au915"] == [0, 0, 11, 53, 125, 222, 222]
    assert LEAST_FRAME > 11


def test_an_answer_in_america_is_wider_than_the_question():
    here = region("us915")
    assert here.room_down(here.rate(9)) == 222
    assert (here.rx2.sf, here.rx2.bandwidth_hz, here.rx2.frame_bytes) == (12, 500_000, 53)


def test_unknown_names_are_refused_with_those_that_are_known():
    for what, name in ((region, "eu433"), (network, "helium")):
        with pytest.raises(ConfigError, match="choose one of"):
            what(name)
    with pytest.raises(ConfigError, match="SF6"):
        region("eu868").rate(6)
