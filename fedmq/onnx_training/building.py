"""From an ordinary inference model to a training bundle. Pure, but for what `run` does."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from fedmq.onnx_training import gradcheck, losses
from fedmq.onnx_training.graph import Net, Shape, Tensor
from fedmq.onnx_training.lowering import lower
from fedmq.onnx_training.promoting import Promoted, promote
from fedmq.onnx_training.settling import settle
from fedmq.onnx_training.step import Head, head_of, infer_model, loss_model, step_model
from fedmq.onnx_training.trial import check_forward, feeds_of, near
from schemas.bundle import Bundle, BundleManifest, Loss, Port, pack_bundle, read_bundle
from schemas.errors import ConfigError
from schemas.onnx_file import with_parameters
from schemas.params import ParamSpec, flatten

_DTYPES: Final[dict[int, str]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
}


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle, and what was learnt while it was built.

    Attributes:
        bundle: packed, read again and checked.
        theta0: the model's own initializers, float32, in the order of ParamSpec.
        notes: sentences for the author, about what may be meant otherwise.
        gradient_error: the worst relative error of the gradient against finite differences.
    """

    bundle: Bundle
    theta0: dict[str, NDArray[np.float32]]
    notes: tuple[str, ...]
    gradient_error: float


def build(
    model: onnx.ModelProto,
    *,
    loss: Loss,
    run: gradcheck.Run,
    rng: np.random.Generator,
    batch_statistics: bool = False,
    frozen: Collection[str] = (),
    x_shape: Shape | None = None,
) -> Built:
    """Differentiate a model into a training step, check it, and lay out the bundle.

    Args:
        model: an inference model of one input and one output, with its weights inside.
        loss: what is trained: "cross-entropy" of logits, "nll" of log-probabilities,
            "bce-with-logits", "mse", "mae", or "huber" with delta = 1.
        run: opens a serialised model; the gradient is always checked by running it.
        rng: draws the examples and the directions of that check.
        batch_statistics: BatchNormalization normalises by the batch and its statistics are
            measured, as in training; else they stay as they are.
        frozen: names of initializers that are not trained.
        x_shape: of one example, where the model leaves dimensions open.

    Raises:
        ConfigError: the model cannot be trained, and what to do.
    """
    if loss not in losses.LOSSES:
        raise ConfigError("loss", f"must be one of {', '.join(losses.LOSSES)}, not {loss!r}")
    promoted = promote(model, x_shape=x_shape)
    net, known = settle(promoted.net)
    params = _params(promoted, frozenset(frozen), batch_statistics=batch_statistics)
    head = head_of(net, known, loss)
    step = step_model(lower(net, known, batch_statistics=batch_statistics), head, params)
    infer = infer_model(net, head.output)
    bundle = _bundled(step, infer, net, head, params)
    theta0 = {tensor.name: promoted.theta0[tensor.name] for tensor in params.tensors}
    _check_graphs(step, bundle.infer, theta0)
    feeds = feeds_of(net, head, rng)
    plain = step
    if batch_statistics and promoted.statistics:
        plain = step_model(lower(net, known, batch_statistics=False), head, params)
    given = loss_model(promoted.net, head)
    names = [value.name for value in given.graph.input[2:]]
    by_name = dict(zip(names, theta0.values(), strict=True))
    theta = flatten(params, theta0)
    check_forward(
        run(plain.SerializeToString())({**feeds, "theta": theta})[0],
        run(given.SerializeToString())({**feeds, **by_name})[0],
    )
    feeds["theta"] = near(params, theta0, rng)
    error = gradcheck.check(run(bundle.step), params, feeds, rng)
    notes = [*promoted.notes, *_last(net, loss)]
    if promoted.statistics and not batch_statistics:
        notes.append(
            "BatchNormalization stays at the statistics that the model has (a fresh one's are 0 "
            "and 1); --batch-statistics measures them"
        )
    return Built(bundle, theta0, tuple(notes), error)


def _params(promoted: Promoted, frozen: frozenset[str], *, batch_statistics: bool) -> ParamSpec:
    unknown = frozen - set(promoted.theta0)
    if unknown:
        raise ConfigError("frozen", f"no initializer is named {min(unknown)!r}")

    def kind(name: str) -> str:
        if name in promoted.statistics:
            return "buffer" if batch_statistics else "frozen"
        return "frozen" if name in frozen else "trained"

    told = [
        {"name": name, "shape": array.shape, "kind": kind(name)}
        for name, array in promoted.theta0.items()
    ]
    try:
        return msgspec.convert({"tensors": told}, ParamSpec)
    except msgspec.ValidationError as exc:
        raise ConfigError("model: its initializers", f"{exc}") from exc


def _bundled(
    step: onnx.ModelProto, infer: onnx.ModelProto, net: Net, head: Head, params: ParamSpec
) -> Bundle:
    data, skeleton = step.SerializeToString(), infer.SerializeToString()
    try:
        manifest = BundleManifest(
            opset=net.opset,
            ir=step.ir_version,
            loss=head.loss,
            x=_port("x", net.x[1]),
            label=_port("label", head.label),
            output=_port(net.output, head.output),
            params=params,
            step_sha256=sha256(data).hexdigest(),
            step_bytes=len(data),
            infer_sha256=sha256(skeleton).hexdigest(),
            infer_bytes=len(skeleton),
        )
        return read_bundle(pack_bundle(manifest, data, skeleton))
    except ValueError as exc:
        raise ConfigError("model", f"{exc}") from exc


def _port(name: str, tensor: Tensor) -> Port:
    return msgspec.convert(
        {"name": name, "dtype": _DTYPES[tensor.dtype], "shape": tensor.shape[1:]}, Port
    )


def _check_graphs(
    step: onnx.ModelProto, infer: bytes, theta0: Mapping[str, NDArray[np.float32]]
) -> None:
    """What ONNX's own checker finds, shapes and all."""
    try:
        onnx.checker.check_model(step, full_check=True)
        onnx.checker.check_model(with_parameters(infer, theta0), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ConfigError("model", f"gives a graph that ONNX refuses; report it ({exc})") from exc


def _last(net: Net, loss: Loss) -> Iterable[str]:
    """A last operator that does not go with the loss."""
    kinds = {name: node.op_type for node in net.nodes for name in node.output}
    last = kinds.get(net.output)
    if loss == "cross-entropy" and last in {"Softmax", "LogSoftmax"}:
        yield f'the output is a {last}, and "cross-entropy" takes logits: leave the {last} out'
    if loss == "bce-with-logits" and last == "Sigmoid":
        yield 'the output is a Sigmoid, and "bce-with-logits" takes logits: leave the Sigmoid out'
    if loss == "nll" and last != "LogSoftmax":
        yield '"nll" takes log-probabilities, and the output is no LogSoftmax'
