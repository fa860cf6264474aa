"""A run as it might have come out."""

from fedmq.simulator.virtual.outcome import Outcome, Participation, Sample


def run_of(name="a", *, reached=True, target=True):
    samples = [
        Sample(n, n // 10, 36.0 * n, 100 * n, 200 * n, 2.0 * n, {"accuracy": n / 100})
        for n in range(0, 100, 25)
    ]
    return Outcome(
        name=name,
        devices=20,
        seed=1,
        samples=samples,
        target={"accuracy": 0.7} if target else {},
        reached=samples[-1] if reached else None,
        version=7,
        digest="0123456789abcdef",
        staleness={0: 3, 2: 1},
        staleness_mean=0.5,
        outcomes={"folded": 4, "lost": 1},
        participation=Participation(4, 0.4, 0.4, 0.25, [0.1, 0.2, 0.3, 0.4]),
        dead=0,
        trained=5,
        events=50,
        wall_s=2.0,
    )
