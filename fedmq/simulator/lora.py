"""How long a LoRa frame is on the air: Semtech's formula. Pure; refuses what no modem sends."""

from typing import Final

from schemas.errors import ConfigError

MAC_BYTES: Final = 13
"""What LoRaWAN adds to a payload: MHDR 1, DevAddr 4, FCtrl 1, FCnt 2, FPort 1, MIC 4 (TS001)."""

LARGEST: Final = 255
"""The length field of the physical header has one byte."""


def airtime_s(
    sf: int,
    payload_bytes: int,
    bandwidth_hz: int = 125_000,
    coding_rate: int = 1,
    preamble: int = 8,
) -> float:
    """Seconds on the air of one frame with explicit header and CRC.

    Source: Semtech AN1200.13, "LoRa Modem Designer's Guide", section 4; the low-data-rate
    optimisation is on where a symbol lasts longer than 16 ms, as LoRaWAN asks: SF11 and SF12 at
    125 kHz.

    Args:
        sf: spreading factor, 6 to 12.
        payload_bytes: the physical payload, so LoRaWAN's 13 bytes (`MAC_BYTES`) included.
        bandwidth_hz: of the channel.
        coding_rate: 1 to 4, for 4/5 to 4/8.
        preamble: symbols of preamble that are programmed; the modem adds 4.25.
    """
    if not 6 <= sf <= 12:
        raise ConfigError("sf", f"must lie between 6 and 12, not {sf}")
    if not 0 <= payload_bytes <= LARGEST:
        raise ConfigError("payload_bytes", f"must lie between 0 and {LARGEST}, not {payload_bytes}")
    if not 1 <= coding_rate <= 4:
        raise ConfigError("coding_rate", f"must lie between 1 (4/5) and 4 (4/8), not {coding_rate}")
    symbol_s = (1 << sf) / bandwidth_hz
    slow = 1 if symbol_s > 0.016 else 0
    bits = 8 * payload_bytes - 4 * sf + 28 + 16  # 16: the CRC; an explicit header takes nothing off
    blocks = -(-bits // (4 * (sf - 2 * slow)))
    symbols = 8 + max(blocks * (coding_rate + 4), 0)
    return (preamble + 4.25 + symbols) * symbol_s
