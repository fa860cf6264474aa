"""PyTorch's exporter, asked in the safe way."""

import sys

import numpy as np
import pytest

from fedmq.onnx_training import build
from fedmq.onnx_training.from_torch import check_count, export
from fedmq.onnx_training.promoting import promote
from fedmq.onnx_training.settling import settle
from schemas.errors import ConfigError


def test_without_torch_the_remedy_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="pip install torch"):
        export(None, None)


def test_a_lost_parameter_is_refused(model) -> None:
    made = model("h = Mul(input, w) y = Mul(h, w)", (4,), {"w": (4,)})
    check_count(made, 4)
    with pytest.raises(ConfigError, match="4 numbers to train, and the module 8"):
        check_count(made, 8)


def test_statistics_are_not_counted(model) -> None:
    weights = {"s": (3,), "c": (3,), "mean": (3,), "var": np.ones(3)}
    check_count(model("y = BatchNormalization(input, s, c, mean, var)", (3,), weights), 6)


REASON = "torch is not installed: pip install -r benchmarks/peers/requirements-torch.txt"


@pytest.mark.filterwarnings("ignore")
class TestWithTorch:
    """What only torch's own exporter does."""

    @staticmethod
    def norms():
        torch = pytest.importorskip("torch", reason=REASON)
        nn = torch.nn
        layers = [nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6)]
        return torch, nn.Sequential(*layers, nn.Linear(6, 3))

    def test_equal_parameters_are_exported_apart(self) -> None:
        torch, module = self.norms()
        promoted = promote(export(module, torch.randn(3, 4)))
        assert set(promoted.theta0) == {name for name, _ in module.named_parameters()}
        assert not promoted.notes

    def test_the_default_export_is_refused(self, monkeypatch) -> None:
        torch, module = self.norms()
        asked = torch.onnx.export

        def default(*args, **kwargs):
            return asked(*args, **(kwargs | {"optimize": True}))

        monkeypatch.setattr(torch.onnx, "export", default)
        with pytest.raises(ConfigError, match="optimize=False"):
            export(module, torch.randn(3, 4))

    def test_what_torch_cannot_export_is_told(self) -> None:
        torch, _ = self.norms()

        class Branching(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 3)

            def forward(self, x):
                return self.layer(x) if x.sum() > 0 else x

        with pytest.raises(ConfigError, match="cannot export"):
            export(Branching(), torch.randn(3, 4))

    def test_a_convolution_keeps_its_normalisation(self) -> None:
        torch, _ = self.norms()
        nn = torch.nn
        module = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten())
        promoted = promote(export(module, torch.randn(3, 2, 5, 5)))
        net, _ = settle(promoted.net)
        assert [n.op_type for n in net.nodes[:2]] == ["Conv", "BatchNormalization"]
        assert len(promoted.theta0) == 5

    def test_a_buffer_is_a_constant(self, run, rng) -> None:
        torch, _ = self.norms()

        class Shifted(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 3)
                self.register_buffer("shift", torch.randn(3))

            def forward(self, x):
                return self.layer(x) + self.shift

        module = Shifted()
        built = build(export(module, torch.randn(3, 4)), loss="mse", run=run, rng=rng)
        assert set(built.theta0) == {"layer.weight", "layer.bias"}

    def test_many_steps_end_where_torch_ends(self, run, rng) -> None:
        torch, _ = self.norms()
        torch.manual_seed(3)
        module = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        built = build(export(module, torch.randn(3, 8)), loss="cross-entropy", run=run, rng=rng)
        step = run(built.bundle.step)
        x, label = torch.randn(64, 8), torch.randint(0, 4, (64,))
        theta = np.concatenate([built.theta0[n].ravel() for n, _ in module.named_parameters()])
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(100):
            feeds = {"x": x.numpy(), "label": label.numpy(), "theta": theta}
            theta = theta - np.float32(0.1) * step(feeds)[1]
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(module(x), label).backward()
            optimiser.step()
        torchs = torch.cat([p.detach().ravel() for p in module.parameters()]).numpy()
        np.testing.assert_allclose(theta, torchs, atol=1e-5)
