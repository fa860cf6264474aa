"""Every tensor's shape, with the batch as the only unknown. Pure.

ONNX's own inference is asked twice, for two batches that are primes too large to be met by chance;
a dimension that differs grows with the batch. So what comes out of a Reshape to -1, or of a
computed shape, is known exactly.
"""

from typing import Final

import onnx
from onnx import TensorProto, shape_inference

from fedmq.onnx_training.graph import Net, Shape, Tensor
from schemas.errors import ConfigError

BATCHES: Final = (10007, 20011)


def tensors(net: Net) -> dict[str, Tensor]:
    """What is known of the tensors of a network; one of unknown shape is left out.

    Raises ConfigError: the graph contradicts itself for some batch, e.g. reshapes to a fixed one.
    """
    try:
        one, two = (_at(net, batch) for batch in BATCHES)
    except shape_inference.InferenceError as exc:
        raise ConfigError(
            "model", f"does not work for every batch size: export it with a dynamic batch ({exc})"
        ) from exc
    known = {}
    for name, (dtype, shape) in one.items():
        dimensions = _grown(shape, two.get(name, (dtype, None))[1])
        if dimensions is not None:
            known[name] = Tensor(dimensions, dtype)
    return known


def _at(net: Net, batch: int) -> dict[str, tuple[int, list[int] | None]]:
    model = shape_inference.infer_shapes(net.model(batch), strict_mode=True, data_prop=True)
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {value.name: _read(value.type.tensor_type) for value in values}
    for tensor in graph.initializer:
        found[tensor.name] = (tensor.data_type, list(tensor.dims))
    return {name: known for name, known in found.items() if known[0] != TensorProto.UNDEFINED}


def _read(kind: onnx.TypeProto.Tensor) -> tuple[int, list[int] | None]:
    if not kind.HasField("shape") or any(not d.HasField("dim_value") for d in kind.shape.dim):
        return kind.elem_type, None
    return kind.elem_type, [d.dim_value for d in kind.shape.dim]


def _grown(one: list[int] | None, two: list[int] | None) -> Shape | None:
    if one is None or two is None or len(one) != len(two):
        return None
    shape = []
    for a, b in zip(one, two, strict=True):
        if a == b:
            shape.append(a)
        elif a % BATCHES[0] == 0 and a // BATCHES[0] * BATCHES[1] == b:
            shape.append(-(a // BATCHES[0]))
        else:
            return None
    return tuple(shape)
