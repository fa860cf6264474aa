"""One node as a rule of differentiation sees it. Pure.

A rule is given an `Op` and returns the adjoint of every input, or None where nobody asks for it. An
adjoint is the name of a tensor of the input's shape: the derivative of the loss with respect to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

import numpy as np
import onnx
from onnx import helper

from fedmq.onnx_training.graph import Array, Builder, Shape, Tensor, refuse
from schemas.errors import ConfigError

Adjoints: TypeAlias = Sequence[str | None]
"""One an input, in their order; what is missing at the end is None."""

_NOT_CONSTANT: Final = "must be a constant: export the model with it fixed"


@dataclass(slots=True)
class Op:
    """A node, what is known of its tensors, and the builder that takes the nodes of its adjoints.

    Attributes:
        node: it may be given outputs that it can have and that nobody asked for yet.
        build: writes nodes.
        known: shapes and types of the tensors of the network.
        adjoints: of the outputs; None where an output does not matter.
        wanted: the tensors whose adjoints somebody asks for.
    """

    node: onnx.NodeProto
    build: Builder
    known: Mapping[str, Tensor]
    adjoints: Sequence[str | None]
    wanted: frozenset[str]

    @property
    def x(self) -> str:
        """The first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """The first output."""
        return str(self.node.output[0])

    @property
    def dy(self) -> str:
        """The adjoint of the first output. Raises ConfigError: another output is used, too."""
        if self.adjoints[0] is None or any(self.adjoints[1:]):
            self.refuse("only its first output may be used")
        return self.adjoints[0]

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs; one that is left out is empty."""
        return list(self.node.input)

    def refuse(self, remedy: str) -> NoReturn:
        """Raises ConfigError that names the node."""
        refuse(self.node, remedy)

    def has(self, index: int) -> bool:
        """Whether the node has this input."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def wants(self, index: int) -> bool:
        """Whether somebody asks for the adjoint of this input."""
        return self.has(index) and self.node.input[index] in self.wanted

    def tensor(self, name: str) -> Tensor:
        """What is known of a tensor. Raises ConfigError: nothing."""
        if name not in self.known:
            self.refuse(f"the shape of {name!r} is unknown: export the model with fixed dimensions")
        return self.known[name]

    def shape(self, index: int = 0) -> Shape:
        """The shape of an input."""
        return self.tensor(self.node.input[index]).shape

    @property
    def out(self) -> Shape:
        """The shape of the first output."""
        return self.tensor(self.y).shape

    def rank(self, index: int = 0) -> int:
        """How many dimensions an input has."""
        return len(self.shape(index))

    def output(self, index: int) -> str:
        """An output's name, which is given to it now when it has none yet."""
        names = list(self.node.output) + [""] * (index + 1 - len(self.node.output))
        names[index] = names[index] or self.build.fresh(self.node.op_type)
        self.node.output[:] = names
        return str(names[index])

    def attribute(self, name: str) -> object | None:
        """An attribute's value, or None."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value: object = helper.get_attribute_value(attribute)
                return value
        return None

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.attribute(name)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """An attribute that is a real number."""
        value = self.attribute(name)
        return value if isinstance(value, float) else default

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attribute(name)
        return value.decode() if isinstance(value, bytes) else default

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute that is a list of whole numbers."""
        value = self.attribute(name)
        return [int(v) for v in value] if isinstance(value, list) else list(default)

    def constant(self, index: int) -> Array:
        """An input's content. Raises ConfigError: it is not a constant."""
        name = self.node.input[index]
        if name not in self.build.constants:
            self.refuse(f"its input {name!r} {_NOT_CONSTANT}")
        return self.build.constants[name]

    def constant_ints(self, index: int) -> list[int] | None:
        """An input's content as whole numbers; None: the node has no such input."""
        if not self.has(index):
            return None
        return [int(v) for v in np.atleast_1d(self.constant(index))]

    def axes(self, index: int) -> list[int] | None:
        """The axes that an input tells, counted from the front; None: it tells none."""
        axes = self.constant_ints(index)
        return None if axes is None else [a % self.rank() for a in axes]

    def sum_to(self, name: str, index: int) -> str:
        """Bring what has the output's shape to the shape of an input that was broadcast."""
        return self.build.sum_to(name, self.out, self.shape(index))

    def reshape(self, name: str, shape: Shape) -> str:
        """Reshape. Raises ConfigError: two dimensions grow with the batch."""
        try:
            return self.build.reshape(name, shape)
        except ValueError as exc:
            self.refuse(f"{exc}: reshape less")

    def fixed(self, shape: Shape) -> list[int]:
        """A shape that does not grow with the batch. Raises ConfigError: it does."""
        if any(d < 0 for d in shape):
            self.refuse("acts along the batch: let every example be computed by itself")
        return list(shape)


Rule: TypeAlias = Callable[[Op], Adjoints]


def no_rule(operators: Mapping[str, Sequence[str]]) -> ConfigError:
    """The refusal of operators that no rule differentiates, with the nodes of each."""
    told = "; ".join(f"{kind} (node {', '.join(map(repr, n))})" for kind, n in operators.items())
    return ConfigError(
        "model",
        f"has operators that fedmq cannot differentiate: {told}. Express them by others, or freeze "
        "every parameter before them (fedmq/onnx_training/rules holds one function an operator)",
    )
