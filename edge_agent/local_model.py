"""What a trainer is given and what is made of its answer, by the kinds of the tensors. Pure.

trained, buffer   from the global model; what has changed travels
frozen            from the global model, and back to it whatever the trainer did
local             this device's own, from the spool; begins as the task's
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.params import Params, ParamSpec, flatten, unflatten
from schemas.task import TrainOptions


def with_local(spec: ParamSpec, params: Params, local: Mapping[str, bytes]) -> Params:
    """A flat vector with this device's own tensors in it: `params` itself when there are none."""
    mine = {t.name for t in spec.tensors if t.kind == "local"} & local.keys()
    if not mine:
        return params
    flat = params.copy()
    for name, view in unflatten(spec, flat).items():
        kept = np.frombuffer(local.get(name, b""), dtype="<f4")
        if name in mine and kept.size == view.size:
            view.reshape(-1)[:] = kept
    return flat


def local_bytes(spec: ParamSpec, params: Params) -> dict[str, bytes]:
    """This device's own tensors, little-endian float32, for the spool."""
    parts = unflatten(spec, params)
    return {
        tensor.name: parts[tensor.name].astype("<f4").tobytes()
        for tensor in spec.tensors
        if tensor.kind == "local"
    }


def read_only(spec: ParamSpec, params: Params) -> dict[str, Params]:
    """Named views that a trainer cannot write to."""
    tensors = unflatten(spec, params)
    for view in tensors.values():
        view.flags.writeable = False
    return tensors


def told_local(spec: ParamSpec, options: TrainOptions) -> TrainOptions:
    """The options with the `local` tensors named, where `head_epochs` moves them by themselves.

    A trainer is given tensors without their kinds; `personal.head` is where it is told.
    """
    if not options.personal.head_epochs:
        return options
    names = tuple(tensor.name for tensor in spec.tensors if tensor.kind == "local")
    personal = msgspec.structs.replace(options.personal, head=names)
    return msgspec.structs.replace(options, personal=personal)


def answered(spec: ParamSpec, base: Params, tensors: Mapping[str, NDArray[np.generic]]) -> Params:
    """A trainer's answer as a flat float32 vector, the frozen tensors as in `base`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    params = flatten(spec, tensors)
    before = unflatten(spec, base)
    for tensor, view in zip(spec.tensors, unflatten(spec, params).values(), strict=True):
        if tensor.kind == "frozen":
            view[...] = before[tensor.name]
    return params
