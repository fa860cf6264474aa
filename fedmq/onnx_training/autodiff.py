"""Reverse differentiation of a network, node by node. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import onnx
from onnx import TensorProto

from fedmq.onnx_training.graph import Builder, Tensor, needed, refuse
from fedmq.onnx_training.rules import RULES
from fedmq.onnx_training.rules.op import Op, no_rule

_OTHER_FLOATS: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def gradients(
    build: Builder,
    known: Mapping[str, Tensor],
    seeds: Mapping[str, str],
    trained: Collection[str],
) -> dict[str, str]:
    """Write the nodes that differentiate what the builder holds.

    Args:
        build: holds the forward nodes, in an order in which they can be run; takes the others.
        known: shapes and types of the forward tensors.
        seeds: adjoints of the outputs, already written.
        trained: the tensors whose adjoints are wanted.

    Returns:
        The adjoint of every trained tensor on which the outputs depend.

    Raises:
        ConfigError: a node on the way has no rule, or its rule refuses it.
    """
    forward, _ = needed(build.nodes, seeds)
    wanted = _wanted(forward, known, trained)
    path = [n for n in forward if wanted.intersection(n.input) and wanted.intersection(n.output)]
    missing: dict[str, list[str]] = {}
    for node in path:
        if node.op_type not in RULES:
            missing.setdefault(node.op_type, []).append(node.name or node.output[0])
    if missing:
        raise no_rule(missing)
    parts: dict[str, list[str]] = {name: [seed] for name, seed in seeds.items()}
    for node in reversed(path):
        adjoints = [_collected(build, parts, name) for name in node.output]
        if any(adjoints):
            _spread(Op(node, build, known, adjoints, wanted), parts)
    return {name: build.total(parts[name]) for name in trained if name in parts}


def _wanted(
    forward: Sequence[onnx.NodeProto], known: Mapping[str, Tensor], trained: Collection[str]
) -> frozenset[str]:
    """The tensors that depend on what is trained, and can have an adjoint."""
    wanted = set(trained)
    for node in forward:
        if not wanted.intersection(node.input):
            continue
        for name in node.output:
            if name in known and known[name].dtype in _OTHER_FLOATS:
                refuse(node, "computes in another precision than float32: export it in float32")
            if name and (name not in known or known[name].is_float):
                wanted.add(name)
    return frozenset(wanted)


def _collected(build: Builder, parts: dict[str, list[str]], name: str) -> str | None:
    if name not in parts:
        return None
    parts[name] = [build.total(parts[name])]
    return parts[name][0]


def _spread(op: Op, parts: dict[str, list[str]]) -> None:
    inputs = list(op.node.input)
    for index, adjoint in enumerate(RULES[op.node.op_type](op)):
        if adjoint is not None and op.wants(index):
            parts.setdefault(inputs[index], []).append(adjoint)
