"""Every rule against finite differences of the loss, through the whole building of a bundle."""

import numpy as np
import pytest

from fedmq.onnx_training import build
from fedmq.onnx_training.rules import RULES

FRONT = "a = Mul(input, w) h = Add(a, b) "

BODIES = {
    "Abs": "Abs(h)",
    "Celu": "Celu<alpha = 0.7>(h)",
    "Cos": "Cos(h)",
    "Elu": "Elu<alpha = 1.5>(h)",
    "Elu, plain": "Elu(h)",
    "Erf": "Erf(h)",
    "Exp": "Exp(h)",
    "HardSigmoid": "HardSigmoid(h)",
    "HardSigmoid, steep": "HardSigmoid<alpha = 1.5>(h)",
    "HardSwish": "HardSwish(h)",
    "HardSwish, far out": "q = Sum(h, h, h, h, h) y = HardSwish(q)",
    "LeakyRelu": "LeakyRelu<alpha = 0.3>(h)",
    "Mish": "Mish(h)",
    "Neg": "Neg(h)",
    "Relu": "Relu(h)",
    "Selu": "Selu(h)",
    "Selu, of other constants": "Selu<alpha = 1.2, gamma = 0.8>(h)",
    "Sigmoid": "Sigmoid(h)",
    "Sin": "Sin(h)",
    "Softplus": "Softplus(h)",
    "Softsign": "Softsign(h)",
    "Tanh": "Tanh(h)",
    "ThresholdedRelu": "ThresholdedRelu<alpha = 0.4>(h)",
    "Softmax": "Softmax(h)",
    "Softmax, axis 1": "Softmax<axis = 1>(h)",
    "LogSoftmax": "LogSoftmax(h)",
    "LogSoftmax, axis 1": "LogSoftmax<axis = 1>(h)",
    "Identity": "Identity(h)",
    "Dropout": "Dropout(h)",
    "Flatten": "Flatten(h)",
    "Transpose": "Transpose<perm = [0, 2, 1]>(h)",
    "ReduceSum, all": "ReduceSum(h, one)",
    "ReduceMean": "ReduceMean<keepdims = 0>(h, one)",
    "ReduceMax": "ReduceMax(h, one)",
    "ReduceMin": "ReduceMin<keepdims = 0>(h, one)",
    "Reshape": "Reshape(h, flat)",
    "Unsqueeze": "Unsqueeze(h, one)",
    "Expand": "e = Unsqueeze(h, one) y = Expand(e, wide)",
    "Tile": "Tile(h, twice)",
    "Concat": "Concat<axis = 1>(h, a, input)",
    "Concat of one that matters": "Concat<axis = 2>(input, h)",
    "Split": "s, t = Split<axis = 2, num_outputs = 2>(h) y = Mul(s, t)",
    "Split of which one is used": "s, t = Split<axis = 2, num_outputs = 2>(h) y = Exp(t)",
    "Slice": "Slice(h, one, far, one)",
    "Slice, backwards": "Slice(h, last, before, two, minus)",
    "Pad": "Pad(h, pads)",
    "Gather of one": "Gather<axis = 1>(h, index)",
    "Gather of several": "Gather<axis = 2>(h, several)",
    "Clip": "Clip(h, low, high)",
    "Clip from below": "Clip(h, low)",
    "Pow, squared": "Pow(h, square)",
    "Where": "c = Greater(input, low) y = Where(c, h, a)",
    "Where, broadcast": "c = Greater(input, low) y = Where(c, shift, b)",
    "Max": "Max(h, a)",
    "Min": "Min(h, a, input)",
    "Sum": "Sum(h, a, b)",
    "Sub": "Sub(a, h)",
    "Cast": "Cast<to = 1>(h)",
    "CastLike": "CastLike(h, input)",
    "LayerNormalization": "LayerNormalization(h, scale, shift)",
    "LayerNormalization over two": "LayerNormalization<axis = 1>(h, w1, b1)",
    "InstanceNormalization": "InstanceNormalization(h, channel, channel2)",
    "Gelu": "Gelu(h)",
    "Gelu by tanh": 'Gelu<approximate = "tanh">(h)',
    "GlobalAveragePool": "GlobalAveragePool(h)",
    "GlobalMaxPool": "GlobalMaxPool(h)",
    "PRelu": "PRelu(h, slope)",
    "Mul": "Mul(h, a)",
    "Div": "p = Exp(a) y = Div(h, p)",
    "Log": "p = Exp(h) q = Add(p, p) y = Log(q)",
    "Sqrt": "p = Exp(h) y = Sqrt(p)",
    "Reciprocal": "p = Exp(h) y = Reciprocal(p)",
    "Pow": "p = Exp(h) y = Pow(p, half)",
    "Pow, each its own": "p = Exp(h) y = Pow(p, powers)",
    "GatherElements": "i = ArgMax<axis = 2>(input) y = GatherElements<axis = 2>(h, i)",
    "GatherND": "t = Transpose(h) g = GatherND(t, pairs) y = Transpose<perm = [1, 0]>(g)",
    "ReduceL2": "ReduceL2(h, one)",
    "ReduceLogSumExp": "ReduceLogSumExp<keepdims = 0>(h, one)",
    "Einsum": 'Einsum<equation = "nij,kj->nki">(h, w)',
    "DepthToSpace": "q = Reshape(h, square4) y = DepthToSpace<blocksize = 2>(q)",
    "DepthToSpace, CRD": 'q = Reshape(h, square4) y = DepthToSpace<blocksize = 2, mode = "CRD">(q)',
    "Resize": "q = Reshape(h, square4) y = Resize(q, , scales)",
    "Squeeze": "s = Unsqueeze(h, one) y = Squeeze(s, one)",
}
WEIGHTS = {
    "w": (3, 4),
    "b": (4,),
    "scale": (4,),
    "shift": (4,),
    "slope": (3, 1),
    "w1": (3, 4),
    "b1": (3, 4),
    "channel": (3,),
    "channel2": (3,),
}
CONSTANTS = {
    "one": [1],
    "two": [2],
    "flat": [0, -1],
    "wide": [1, 5, 3, 4],
    "twice": [1, 2, 3],
    "far": [2**62],
    "last": [-1],
    "before": [-(2**62)],
    "minus": [-2],
    "pads": [0, 1, 2, 0, 0, 1],
    "index": np.array(-1),
    "several": [3, 0, 3],
    "low": np.float32(-0.3),
    "high": np.float32(0.9),
    "square": np.float32(2),
    "pairs": [[0, 1], [3, 2], [0, 1]],
    "square4": [0, 4, 3, 1],
    "scales": np.array([1, 1, 2, 3], np.float32),
    "half": np.float32(1.5),
    "powers": np.array([2, 1, 0.5, -1], np.float32),
}


CONVOLUTIONS = {
    "plain": ((2, 6, 5), (4, 2, 3, 3), ""),
    "of one point": ((2, 4, 3), (3, 2, 1, 1), ""),
    "padded on one side": ((2, 6, 5), (4, 2, 3, 2), "pads = [2, 0, 1, 1]"),
    "with strides that leave rows unused": ((2, 8, 7), (4, 2, 3, 3), "strides = [3, 2]"),
    "dilated": ((2, 8, 9), (3, 2, 3, 2), "dilations = [2, 3]"),
    "grouped": ((4, 5, 6), (6, 2, 2, 3), "group = 2"),
    "depthwise, strided and padded": (
        (4, 7, 6),
        (8, 1, 3, 3),
        "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]",
    ),
    "same, upper": ((2, 6, 5), (3, 2, 3, 2), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same, lower": ((2, 6, 5), (3, 2, 4, 2), 'auto_pad = "SAME_LOWER"'),
    "valid": ((2, 6, 5), (3, 2, 4, 2), 'auto_pad = "VALID"'),
    "over one axis": ((3, 9), (4, 3, 3), "strides = [2], pads = [1, 0]"),
}
POOLS = {
    "MaxPool that tiles": "MaxPool<kernel_shape = [2, 3], strides = [2, 3]>(h)",
    "MaxPool that overlaps": "MaxPool<kernel_shape = [3, 3], strides = [1, 2]>(h)",
    "MaxPool that is padded": (
        "MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]>(h)"
    ),
    "MaxPool that leaves rows": "MaxPool<kernel_shape = [2, 2], strides = [3, 4]>(h)",
    "MaxPool that rounds up": (
        "MaxPool<kernel_shape = [4, 4], strides = [4, 4], ceil_mode = 1>(h)"
    ),
    "AveragePool that tiles": "AveragePool<kernel_shape = [2, 3], strides = [2, 3]>(h)",
    "AveragePool that overlaps": "AveragePool<kernel_shape = [3, 2], strides = [2, 1]>(h)",
    "AveragePool that counts no pads": (
        "AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(h)"
    ),
    "AveragePool that counts pads": (
        "AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], "
        "count_include_pad = 1>(h)"
    ),
    "AveragePool, same": (
        'AveragePool<kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER">(h)'
    ),
    "AveragePool, same, counting pads": (
        "AveragePool<kernel_shape = [3, 2], strides = [2, 2], count_include_pad = 1, "
        'auto_pad = "SAME_LOWER">(h)'
    ),
    "AveragePool that rounds up": (
        "AveragePool<kernel_shape = [4, 4], strides = [4, 4], ceil_mode = 1>(h)"
    ),
}
PRODUCTS = {
    "Gemm": ((5,), {"m": (5, 3), "c": (3,)}, "y = Gemm(input, m, c)"),
    "Gemm, turned and scaled": (
        (5,),
        {"v": (3, 5), "m": (3, 4), "c": (4, 1)},
        (
            "h = Gemm<transB = 1>(input, v) "
            "k = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 2.0>(m, h, c) y = Transpose(k)"
        ),
    ),
    "Gemm, the left turned": (
        (5,),
        {"v": (5, 3), "m": (3, 4)},
        "h = Gemm(input, v) t = Transpose(h) k = Gemm<transA = 1>(t, m) y = Tanh(k)",
    ),
    "MatMul of matrices": (
        (5,),
        {"m": (5, 3), "v": (3, 2)},
        "h = MatMul(input, m) y = MatMul(h, v)",
    ),
    "MatMul of a stack and a matrix": (
        (2, 3, 5),
        {"m": (5, 4), "v": (4, 2)},
        "h = MatMul(input, m) y = MatMul(h, v)",
    ),
    "MatMul of two stacks": (
        (3, 5),
        {"m": (5, 4), "v": (5, 4)},
        (
            "q = MatMul(input, m) k = MatMul(input, v) t = Transpose<perm = [0, 2, 1]>(k) "
            "y = MatMul(q, t)"
        ),
    ),
    "MatMul, the stack broadcast": (
        (1, 3, 5),
        {"m": (2, 5, 4), "v": (6, 3)},
        "h = MatMul(input, m) y = MatMul(v, h)",
    ),
    "MatMul with a vector": ((3, 5), {"m": (5,), "v": (3,)}, "h = MatMul(input, m) y = Mul(h, v)"),
    "MatMul of a vector": ((5, 3), {"v": (5,), "s": (5, 1)}, "h = Mul(input, s) y = MatMul(v, h)"),
}


def used(names, body):
    """What of these a body reads."""
    tokens = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: names[name] for name in names if name in tokens}


@pytest.mark.parametrize("name", BODIES)
def test_an_operator_is_differentiated(name, model, run, rng) -> None:
    body = FRONT + (BODIES[name] if "y = " in BODIES[name] else f"y = {BODIES[name]}")
    constants = {n: np.asarray(v) for n, v in used(CONSTANTS, body).items()}
    opset = 20 if "Gelu" in name else 18
    made = model(body, (3, 4), used(WEIGHTS, body) | constants, opset=opset)
    assert build(made, loss="mse", run=run, rng=rng).gradient_error < 2e-2


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_differentiated(name, model, run, rng) -> None:
    x, kernel, attributes = CONVOLUTIONS[name]
    ones = ",".join("1" for _ in x[1:])
    body = (
        f"h = Conv<kernel_shape = [{ones}]>(input, first) "
        f"k = Conv{attributes and f'<{attributes}>'}(h, w, b) y = Tanh(k)"
    )
    weights = {"first": (x[0], x[0], *[1 for _ in x[1:]]), "w": kernel, "b": kernel[:1]}
    built = build(model(body, x, weights), loss="mse", run=run, rng=rng)
    assert built.gradient_error < 2e-2


DECONVOLUTIONS = {
    "plain": ((2, 3, 4), (2, 3, 2, 3), ""),
    "strided and padded": (
        (2, 3, 4),
        (2, 3, 3, 4),
        "strides = [2, 3], pads = [1, 0, 0, 2], output_padding = [1, 0]",
    ),
    "grouped and dilated": ((4, 3, 4), (4, 3, 2, 2), "group = 2, dilations = [2, 1]"),
}


@pytest.mark.parametrize("name", DECONVOLUTIONS)
def test_a_transposed_convolution_is_differentiated(name, model, run, rng) -> None:
    x, kernel, attributes = DECONVOLUTIONS[name]
    body = (
        "h = Mul(input, f) "
        f"k = ConvTranspose{attributes and f'<{attributes}>'}(h, w, b) y = Tanh(k)"
    )
    bias = kernel[1] * (2 if "group" in attributes else 1)
    weights = {"f": (x[0], 1, 1), "w": kernel, "b": (bias,)}
    built = build(model(body, x, weights), loss="mse", run=run, rng=rng)
    assert built.gradient_error < 2e-2


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_differentiated(name, model, run, rng) -> None:
    body = f"h = Mul(input, w) p = {POOLS[name]} y = Tanh(p)"
    built = build(model(body, (2, 6, 9), {"w": (2, 6, 9)}), loss="mse", run=run, rng=rng)
    assert built.gradient_error < 2e-2


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_differentiated(name, model, run, rng) -> None:
    x, weights, body = PRODUCTS[name]
    built = build(model(body, x, weights), loss="mse", run=run, rng=rng)
    assert built.gradient_error < 2e-2


def test_a_pool_over_one_axis_is_differentiated(model, run, rng) -> None:
    body = "h = Mul(input, w) p = MaxPool<kernel_shape = [2], strides = [2]>(h) y = Tanh(p)"
    built = build(model(body, (2, 6), {"w": (2, 6)}), loss="mse", run=run, rng=rng)
    assert built.gradient_error < 2e-2


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_batch_normalization_is_differentiated(batch_statistics, model, run, rng) -> None:
    body = "h = Conv(input, k) n = BatchNormalization(h, s, c, mean, var) y = Tanh(n)"
    weights = {"k": (4, 2, 2, 2), "s": (4,), "c": (4,), "mean": (4,), "var": rng.uniform(1, 2, 4)}
    made = model(body, (2, 4, 4), weights)
    built = build(made, loss="mse", run=run, rng=rng, batch_statistics=batch_statistics)
    assert built.gradient_error < 2e-2


def test_an_embedding_adds_up_what_is_looked_up_twice(model, run, rng) -> None:
    body = "e = Gather(table, input) m = ReduceMean<keepdims = 0>(e, axes) y = Gemm(m, v, c)"
    weights = {"table": (5, 3), "v": (3, 2), "c": (2,), "axes": np.array([1])}
    made = model(body, (7,), weights, kind="int64")
    assert build(made, loss="mse", run=run, rng=rng).gradient_error < 2e-2


def test_every_rule_is_tried() -> None:
    bodies = " ".join([*BODIES.values(), *POOLS.values(), *(b for _, _, b in PRODUCTS.values())])
    elsewhere = {"Add", "BatchNormalization", "Conv", "ConvTranspose"}
    assert {kind for kind in RULES if f"{kind}(" not in bodies and f"{kind}<" not in bodies} <= (
        elsewhere
    )
