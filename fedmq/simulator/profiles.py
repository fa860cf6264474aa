"""Links by name. Pure. Beside each stands where its numbers are from.

`[assumed]` marks what no source gives: a choice that we make in the open. Refuses a name that it
does not know.
"""

import math
from collections.abc import Mapping
from typing import Final

from broker.lorawan.regions import EU868, Rate
from fedmq.simulator.links import LinkModel, Loss, Sleep
from fedmq.simulator.outages import Outages
from schemas.errors import ConfigError

MTU: Final = 1358
"""The link MTU that 3GPP recommends for its packet cores (TS 23.060, annex C)."""


def profile(name: str) -> LinkModel:
    """Return the link of that name."""
    if name not in PROFILES:
        raise ConfigError("profile", f"is one of {', '.join(PROFILES)}; not {name!r}")
    return PROFILES[name]


def _lora(rate: Rate) -> LinkModel:
    """Build a LoRaWAN class A link in EU868.

    Sources: payload by data rate and duty cycle, `broker.lorawan.regions`; it listens in RX1 and
    RX2, 1 s and 2 s after its uplink, TS001 3.3; 10 % of frames lost, the rate at which mqtt_iot.md
    section 5 computes what forward error correction costs. 0.1 to 0.3 s through gateway and network
    server [assumed].
    """
    return LinkModel(
        lora_sf=rate.sf,
        frame_bytes=rate.frame_bytes,
        duty=EU868.duty_up,
        delay_s=0.1,
        jitter_s=0.2,
        loss=Loss(loss_good=0.1, loss_bad=0.1),
        sleep=Sleep(period_s=math.inf, awake_s=2.0),
    )


PROFILES: Final[Mapping[str, LinkModel]] = {
    "perfect": LinkModel(),
    # Cat NB1 peaks, 62 kbit/s up and 26 down, and the lower end of its latency, 1.6 s there and
    # back (mqtt_iot.md section 5, NB-IoT). eDRX of 20.48 s with a paging window of 2.56 s: the
    # shortest cycle of NB-S1 mode (TS 24.008, 10.5.5.32). HARQ and RLC send again, so IP sees
    # little loss: 1 %, in bursts of 4, and a minute without network every hour [assumed].
    "nb-iot": LinkModel(
        rate_up=7_750.0,
        rate_down=3_250.0,
        delay_s=0.8,
        jitter_s=0.4,
        loss=Loss(p_good_to_bad=0.005, p_bad_to_good=0.25, loss_bad=0.5),
        outages=Outages(online_s=3_600.0, offline_s=60.0, half_open_share=0.5),
        sleep=Sleep(period_s=20.48, awake_s=2.56),
        frame_bytes=MTU,
        queue_s=30.0,
    ),
    # Deep coverage: below 1 kbit/s, latency up to 10 s there and back (mqtt_iot.md section 5), the
    # 10 % loss of section 3.3. PSM: it hears for 16 s (T3324) every hour (T3412), TS 23.682, 4.5.4;
    # those lengths, bursts of 3 frames and the outages are [assumed].
    "nb-iot-deep": LinkModel(
        rate_up=100.0,
        rate_down=100.0,
        delay_s=2.0,
        jitter_s=3.0,
        loss=Loss(p_good_to_bad=0.05, p_bad_to_good=0.35, loss_good=0.01, loss_bad=0.73),
        outages=Outages(online_s=1_800.0, offline_s=300.0, half_open_share=0.7),
        sleep=Sleep(period_s=3_600.0, awake_s=16.0),
        frame_bytes=MTU,
        queue_s=120.0,
    ),
    # Cat M1 in half duplex: 375 kbit/s up, 300 down (rfwireless-world.com, "LTE-M device
    # categories"; 3GPP release 13). 50 to 100 ms one way, 0.5 % loss in bursts, ten seconds without
    # network every half hour [assumed].
    "lte-m": LinkModel(
        rate_up=46_875.0,
        rate_down=37_500.0,
        delay_s=0.05,
        jitter_s=0.05,
        loss=Loss(p_good_to_bad=0.003, p_bad_to_good=0.3, loss_bad=0.5),
        outages=Outages(online_s=1_800.0, offline_s=10.0, half_open_share=0.3),
        frame_bytes=MTU,
        queue_s=5.0,
    ),
    **{f"lora-dr{rate.dr}": _lora(rate) for rate in EU868.up},
    # A crowded 2.4 GHz cell at the edge of its reach [assumed throughout]: 2 Mbit/s are left,
    # losses come in bursts (Gilbert-Elliott), a frame whose acknowledgement was lost comes twice,
    # and every minute it drops out for 5 s.
    "wifi-bad": LinkModel(
        rate_up=250_000.0,
        rate_down=250_000.0,
        delay_s=0.003,
        jitter_s=0.15,
        loss=Loss(p_good_to_bad=0.02, p_bad_to_good=0.2, loss_good=0.002, loss_bad=0.5),
        outages=Outages(online_s=60.0, offline_s=5.0, mute_share=0.2, half_open_share=0.2),
        reorder=0.02,
        reorder_s=0.05,
        duplicate=0.002,
        queue_s=2.0,
    ),
}
"""Every link that has a name."""
