import pytest

from fedmq.simulator.lora import MAC_BYTES, airtime_s
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("sf", "payload", "milliseconds"),
    [
        (12, 51, 2793.5),
        (11, 51, 1560.6),
        (10, 51, 698.4),
        (9, 115, 676.9),
        (8, 222, 655.9),
        (7, 222, 368.9),
    ],
)
def test_full_frames_of_eu868_last_as_long_as_the_reference_says(
    sf: int, payload: int, milliseconds: float
) -> None:
    assert 1000 * airtime_s(sf, payload + MAC_BYTES) == pytest.approx(milliseconds, abs=0.05)


def test_a_longer_frame_never_takes_less_time() -> None:
    for sf in range(6, 13):
        times = [airtime_s(sf, size) for size in range(256)]
        assert times == sorted(times)


def test_twice_the_bandwidth_is_half_the_time_where_symbols_are_short() -> None:
    assert airtime_s(9, 64, bandwidth_hz=250_000) == pytest.approx(airtime_s(9, 64) / 2)


def test_more_redundancy_takes_more_time() -> None:
    assert airtime_s(9, 64, coding_rate=4) > airtime_s(9, 64, coding_rate=1)


@pytest.mark.parametrize(
    ("field", "sf", "size", "rate"),
    [("sf", 13, 10, 1), ("sf", 5, 10, 1), ("payload_bytes", 7, 256, 1), ("coding_rate", 7, 9, 5)],
)
def test_what_no_modem_sends_is_refused_by_name(field: str, sf: int, size: int, rate: int) -> None:
    with pytest.raises(ConfigError) as refused:
        airtime_s(sf, size, coding_rate=rate)
    assert refused.value.field == field
