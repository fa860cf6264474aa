"""Networks that train on one flat float32 vector, written for speed: one pass, no fresh arrays.

The product's trainers (`edge_agent.trainers`) check and measure as they go; a study of thousands of
uploads cannot wait for that. The mathematics of `Mlp` is theirs, and a test compares the two.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning.datasets import Share
from schemas.initial import glorot, mlp_shapes
from schemas.params import Params, ParamSpec, TensorSpec, unflatten

Matrix = NDArray[np.float32]


class Network(Protocol):
    """What a fleet needs of a model."""

    @property
    def spec(self) -> ParamSpec:
        """Names and shapes of its tensors."""
        ...

    def initial(self, rng: np.random.Generator) -> Params:
        """Where training starts."""
        ...

    def train(self, start: Params, share: Share, how: "Steps", rng: np.random.Generator) -> Params:
        """Go down from `start` and give the difference, float32 of shape (spec.size,)."""
        ...

    def scores(self, params: Params, features: Matrix) -> Matrix:
        """What it answers, before any softmax: (n, outputs)."""
        ...

    def score(self, params: Params, share: Share) -> float:
        """How good it is on held-out examples: accuracy in per cent, or an error."""
        ...


@dataclass(frozen=True, slots=True)
class Steps:
    """Local training: plain minibatch SGD."""

    learning_rate: float
    epochs: int = 3
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class Mlp:
    """ReLU layers; softmax cross-entropy, or squared error when there is one output.

    Attributes:
        spec: W1, b1, W2, b2, ...
        unit: what one of the target's units is worth when an error is told (1 for classes).
    """

    spec: ParamSpec
    unit: float = 1.0

    def initial(self, rng: np.random.Generator) -> Params:
        """Glorot, as the product draws it."""
        return glorot(self.spec, rng)

    def train(self, start: Params, share: Share, how: Steps, rng: np.random.Generator) -> Params:
        """Run `how.epochs` passes over the share."""
        flat = start.copy()
        slopes = np.empty_like(flat)
        layers = _pairs(self.spec, flat)
        grads = _pairs(self.spec, slopes)
        regression = layers[-1][1].size == 1
        for x, y in _batches(share, how, rng):
            seen = [x]
            for weights, bias in layers[:-1]:
                hidden = seen[-1] @ weights
                hidden += bias
                np.maximum(hidden, 0, out=hidden)
                seen.append(hidden)
            slope = seen[-1] @ layers[-1][0]
            slope += layers[-1][1]
            if not regression:
                _softmax(slope)
            slope -= y
            slope *= np.float32(how.learning_rate / len(x))
            for depth in range(len(layers) - 1, -1, -1):
                np.matmul(seen[depth].T, slope, out=grads[depth][0])
                np.add.reduce(slope, axis=0, out=grads[depth][1])
                if depth:
                    slope = slope @ layers[depth][0].T
                    slope *= seen[depth] > 0
            flat -= slopes
        flat -= start
        return flat

    def scores(self, params: Params, features: Matrix) -> Matrix:
        """Answer all at once."""
        layers = _pairs(self.spec, params)
        seen = features
        for weights, bias in layers[:-1]:
            seen = np.maximum(seen @ weights + bias, 0)
        return _dot(seen, layers[-1][0]) + layers[-1][1]

    def score(self, params: Params, share: Share) -> float:
        """Accuracy in per cent; of a regression, the root mean square error in its unit."""
        return _scored(self.scores(params, share.features), share, self.unit)


@dataclass(frozen=True, slots=True)
class Cnn:
    """Two 3 x 3 convolutions with 2 x 2 max-pooling, then two dense layers, on 8 x 8 pictures.

    Tensors are in ONNX' order: C1 (out, in, 3, 3), c1, C2, c2, W1 (features, hidden), b1, W2, b2.
    """

    spec: ParamSpec

    def initial(self, rng: np.random.Generator) -> Params:
        """Glorot, as the product draws it."""
        return glorot(self.spec, rng)

    def train(self, start: Params, share: Share, how: Steps, rng: np.random.Generator) -> Params:
        """Run `how.epochs` passes over the share."""
        flat = start.copy()
        slopes = np.empty_like(flat)
        tensors, grads = _tensors(self.spec, flat), _tensors(self.spec, slopes)
        c1, o1, c2, o2, w1, b1, w2, b2 = tensors
        for x, y in _batches(share, how, rng):
            n = len(x)
            cols1 = _columns(x.reshape(n, 8, 8, 1))
            full1 = cols1 @ c1.reshape(len(o1), -1).T
            full1 += o1
            low1, mask1 = _pooled(full1.reshape(n, 8, 8, -1))
            cols2 = _columns(low1)
            full2 = cols2 @ c2.reshape(len(o2), -1).T
            full2 += o2
            low2, mask2 = _pooled(full2.reshape(n, 4, 4, -1))
            flat2: Matrix = low2.reshape(n, -1)
            hidden: Matrix = flat2 @ w1
            hidden += b1
            np.maximum(hidden, 0, out=hidden)
            slope = _dot(hidden, w2)
            slope += b2
            _softmax(slope)
            slope -= y
            slope *= np.float32(how.learning_rate / n)
            np.matmul(hidden.T, slope, out=grads[6])
            np.add.reduce(slope, axis=0, out=grads[7])
            slope = slope @ w2.T
            slope *= hidden > 0
            np.matmul(flat2.T, slope, out=grads[4])
            np.add.reduce(slope, axis=0, out=grads[5])
            rows: Matrix = _unpooled((slope @ w1.T).reshape(low2.shape), mask2)
            np.matmul(rows.T, cols2, out=grads[2].reshape(len(o2), -1))
            np.add.reduce(rows, axis=0, out=grads[3])
            below: Matrix = _uncolumned(rows @ c2.reshape(len(o2), -1), low1.shape)
            rows = _unpooled(below, mask1)
            np.matmul(rows.T, cols1, out=grads[0].reshape(len(o1), -1))
            np.add.reduce(rows, axis=0, out=grads[1])
            flat -= slopes
        flat -= start
        return flat

    def scores(self, params: Params, features: Matrix) -> Matrix:
        """Answer all at once."""
        c1, o1, c2, o2, w1, b1, w2, b2 = _tensors(self.spec, params)
        n = len(features)
        seen = _columns(features.reshape(n, 8, 8, 1)) @ c1.reshape(len(o1), -1).T + o1
        low, _ = _pooled(seen.reshape(n, 8, 8, -1))
        seen = _columns(low) @ c2.reshape(len(o2), -1).T + o2
        low, _ = _pooled(seen.reshape(n, 4, 4, -1))
        hidden = np.maximum(low.reshape(n, -1) @ w1 + b1, 0)
        return _dot(hidden, w2) + b2

    def score(self, params: Params, share: Share) -> float:
        """Accuracy in per cent."""
        return _scored(self.scores(params, share.features), share, 1.0)


def mlp(features: int, hidden: tuple[int, ...], outputs: int, unit: float = 1.0) -> Mlp:
    """Give the network of these widths."""
    return Mlp(_spec(mlp_shapes(features, hidden, outputs)), unit)


def cnn(channels: tuple[int, int] = (16, 32), hidden: int = 64) -> Cnn:
    """Give the convolutional network for 8 x 8 digits: 13,706 parameters."""
    one, two = channels
    shapes: dict[str, tuple[int, ...]] = {"C1": (one, 1, 3, 3), "c1": (one,)}
    shapes |= {"C2": (two, one, 3, 3), "c2": (two,)}
    return Cnn(_spec(shapes | mlp_shapes(4 * two, (hidden,), 10)))


def _spec(shapes: dict[str, tuple[int, ...]]) -> ParamSpec:
    return ParamSpec(tuple(TensorSpec(name, shape) for name, shape in shapes.items()))


def _tensors(spec: ParamSpec, flat: Params) -> list[Matrix]:
    return list(unflatten(spec, flat).values())


def _pairs(spec: ParamSpec, flat: Params) -> list[tuple[Matrix, Matrix]]:
    tensors = _tensors(spec, flat)
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _batches(share: Share, how: Steps, rng: np.random.Generator) -> "list[tuple[Matrix, Matrix]]":
    found = []
    for _ in range(how.epochs):
        rows = rng.permutation(len(share.features))
        x, y = share.features[rows], share.targets[rows]
        for start in range(0, len(rows), how.batch_size):
            end = start + how.batch_size
            found.append((x[start:end], y[start:end]))
    return found


def _dot(left: Matrix, right: Matrix) -> Matrix:
    product: Matrix = left @ right
    return product


def _softmax(scores: Matrix) -> None:
    """Turn scores into probabilities in place."""
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=1, keepdims=True)


def _scored(scores: Matrix, share: Share, unit: float) -> float:
    if scores.shape[1] == 1:
        error = (np.clip(scores, 0, 1) - share.targets).astype(np.float64)
        return float(np.sqrt(np.mean(error**2))) * unit
    hits = scores.argmax(axis=1) == share.targets.argmax(axis=1)
    return 100 * float(np.mean(hits))


def _columns(pictures: Matrix) -> Matrix:
    """(n, h, w, c) -> (n h w, c 9): the 3 x 3 neighbourhood of every place, edges padded by 0."""
    n, h, w, c = pictures.shape
    wide = np.zeros((n, h + 2, w + 2, c), dtype=np.float32)
    wide[:, 1:-1, 1:-1] = pictures
    near = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
    return near.reshape(n * h * w, c * 9)


def _uncolumned(columns: Matrix, shape: tuple[int, ...]) -> Matrix:
    """Add every neighbourhood's slopes back where they came from."""
    n, h, w, c = shape
    near = columns.reshape(n, h, w, c, 3, 3)
    wide = np.zeros((n, h + 2, w + 2, c), dtype=np.float32)
    for i in range(3):
        for j in range(3):
            wide[:, i : i + h, j : j + w] += near[..., i, j]
    return wide[:, 1:-1, 1:-1]


def _pooled(full: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    """ReLU and 2 x 2 maxima of (n, h, w, c), and which places have them."""
    n, h, w, c = full.shape
    blocks = full.reshape(n, h // 2, 2, w // 2, 2, c)
    low = np.maximum(blocks.max(axis=(2, 4)), 0)
    mask = blocks == low[:, :, None, :, None]
    mask &= blocks > 0
    return low, mask


def _unpooled(low: Matrix, mask: NDArray[np.bool_]) -> Matrix:
    """Slopes of the maxima, back at their places: rows (n h w, c)."""
    return (low[:, :, None, :, None] * mask).reshape(-1, low.shape[-1])
