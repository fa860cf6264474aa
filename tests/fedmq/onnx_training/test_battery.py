"""Thirteen families of networks against torch's own gradient."""

import numpy as np
import pytest

from fedmq.onnx_training import build
from schemas.params import flatten, unflatten

torch = pytest.importorskip(
    "torch", reason="torch is not installed: pip install -r benchmarks/peers/requirements-torch.txt"
)
from torch import nn  # noqa: E402  # torch may be missing
from torch.nn import functional as F  # noqa: E402, N812  # as everybody calls it

from fedmq.onnx_training.from_torch import export  # noqa: E402  # torch may be missing

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself


class Residual(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, *, norm, act=F.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=not norm)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=not norm)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(2))
        self.head = nn.Linear(8, 5)
        self.act = act

    def forward(self, x):
        x = self.act(self.norms[0](self.first(x)))
        x = self.act(x + self.norms[1](self.second(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One block of self-attention, written out, over embedded positions."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(6, 8) / 3)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.norm2 = nn.LayerNorm(8)
        self.out = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = x + self.place
        q, k, v = self.qkv(self.norm(x)).view(x.shape[0], 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape[0], 6, 8)
        return self.head(self.norm2(x + self.out(mixed)).mean(1))


class Encoder(nn.Module):
    """torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    """A recurrent layer, of which the last step is read."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.layer = kind(4, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Words(nn.Module):
    """The mean of embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


def seq(*layers):
    return nn.Sequential(*layers)


def depthwise(act, **kind):
    return seq(
        nn.Conv2d(3, 6, 3, padding=1),
        act(),
        nn.Conv2d(6, 6, 3, padding=2 if kind else 1, groups=6, **kind),
        act(),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def pools():
    return seq(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(3, stride=1),
        nn.Conv2d(6, 6, 2),
        nn.Tanh(),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def one_axis():
    return seq(
        nn.Conv1d(3, 6, 3, stride=2),
        nn.SiLU(),
        nn.Conv1d(6, 6, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(30),
        nn.Linear(30, 5),
    )


def autoencoder():
    return seq(nn.Linear(12, 4), nn.Sigmoid(), nn.Linear(4, 12))


IMAGE, LINE, TOKENS = (3, 9, 9), (3, 12), (6, 8)
FAMILIES = {
    "residual, BatchNorm frozen": (lambda: Residual(norm=True), IMAGE),
    "residual, ELU": (lambda: Residual(norm=False, act=F.elu), IMAGE),
    "depthwise, dilated, HardSwish": (lambda: depthwise(nn.Hardswish, dilation=2), IMAGE),
    "depthwise, ReLU6": (lambda: depthwise(nn.ReLU6), IMAGE),
    "tanh, overlapping pools": (pools, IMAGE),
    "Conv1d, SiLU, GELU, LayerNorm": (one_axis, LINE),
    "attention": (Attention, TOKENS),
    "TransformerEncoderLayer": (Encoder, TOKENS),
    "LSTM": (lambda: Recurrent(nn.LSTM), (20, 4)),
    "GRU": (lambda: Recurrent(nn.GRU), (20, 4)),
    "embedding": (Words, "words"),
    "autoencoder": (autoencoder, (12,)),
    "residual, BatchNorm of the batch": (lambda: Residual(norm=True), IMAGE),
}


def example(shape, size=16):
    return torch.randint(0, 20, (size, 7)) if shape == "words" else torch.randn(size, *shape)


def stirred(module):
    """With statistics and scales that are not those of a fresh module."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            pass
        else:
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_torch_s_gradient(family, run, rng, record_property) -> None:
    make, shape = FAMILIES[family]
    torch.manual_seed(5)
    module = stirred(make())
    of_batch = family.endswith("of the batch")
    loss = "mse" if family == "autoencoder" else "cross-entropy"
    built = build(
        export(module, example(shape, 3)), loss=loss, run=run, rng=rng, batch_statistics=of_batch
    )
    assert set(built.theta0) == {
        name for name in module.state_dict() if not name.endswith("num_batches_tracked")
    }
    params = built.bundle.manifest.params
    x = example(shape)
    label = x if loss == "mse" else torch.randint(0, 5, (16,))
    step = run(built.bundle.step)
    theta = flatten(params, built.theta0)
    found = step({"x": x.numpy(), "label": label.numpy(), "theta": theta})
    module.train(of_batch)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout | nn.TransformerEncoderLayer):
            layer.eval()
    value = (F.mse_loss if loss == "mse" else F.cross_entropy)(module(x), label)
    value.backward()
    ours = unflatten(params, found[1])
    worst = max(np.abs(ours[n] - p.grad.numpy()).max() for n, p in module.named_parameters())
    record_property("worst", float(worst))
    assert abs(float(found[0]) - value.item()) < 1e-5
    assert worst < 1e-5
    if of_batch:
        after = {n: t.numpy() for n, t in module.state_dict().items()}
        buffers = [after[t.name].ravel() for t in params.tensors if t.kind == "buffer"]
        np.testing.assert_allclose(found[2], np.concatenate(buffers), rtol=1e-5, atol=1e-6)
