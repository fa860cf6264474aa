"""Products of matrices. Pure."""

from typing import Final

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def gemm(op: Op) -> Adjoints:
    """Alpha A' B' + beta C: two products more, and a sum over the rows."""
    g = op.build
    a, b = op.inputs[:2]
    alpha, beta = op.real("alpha", 1.0), op.real("beta", 1.0)
    ta, tb = op.integer("transA", 0), op.integer("transB", 0)
    da = db = dc = None
    if op.wants(0) and ta:
        da = g.op("Gemm", b, op.dy, alpha=alpha, transA=tb, transB=1)
    elif op.wants(0):
        da = g.op("Gemm", op.dy, b, alpha=alpha, transB=1 - tb)
    if op.wants(1) and tb:
        db = g.op("Gemm", op.dy, a, alpha=alpha, transA=1, transB=ta)
    elif op.wants(1):
        db = g.op("Gemm", a, op.dy, alpha=alpha, transA=1 - ta)
    if op.wants(2):
        dc = op.sum_to(op.dy, 2)
        dc = dc if beta == 1.0 else g.op("Mul", dc, g.number(beta))
    return [da, db, dc]


def matmul(op: Op) -> Adjoints:
    """Adjoints dY B^T and A^T dY, summed where a batch of matrices was broadcast."""
    g = op.build
    a, b = op.inputs
    left, right = op.shape(0), op.shape(1)
    if len(left) == 1:
        a, left = op.reshape(a, (1, *left)), (1, *left)
    if len(right) == 1:
        b, right = op.reshape(b, (*right, 1)), (*right, 1)
    out: Shape = (*_wider(left[:-2], right[:-2]), left[-2], right[-1])
    dy = op.dy if out == op.out else op.reshape(op.dy, out)
    flat = len(right) == 2
    da = db = None
    if op.wants(0):
        if flat and len(left) == 2:
            da = g.op("Gemm", dy, b, transB=1)
        else:
            da = g.op("MatMul", dy, g.op("Transpose", b, perm=_swapped(len(right))))
            da = g.sum_to(da, (*out[:-1], left[-1]), left)
        da = da if left == op.shape(0) else op.reshape(da, op.shape(0))
    if op.wants(1):
        if flat:
            rows, adjoint = (_rows(op, name, shape) for name, shape in ((a, left), (dy, out)))
            db = g.op("Gemm", rows, adjoint, transA=1)
        else:
            db = g.op("MatMul", g.op("Transpose", a, perm=_swapped(len(left))), dy)
            db = g.sum_to(db, (*out[:-2], *right[-2:]), right)
        db = db if right == op.shape(1) else op.reshape(db, op.shape(1))
    return [da, db]


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _rows(op: Op, name: str, shape: Shape) -> str:
    """A stack of matrices as one matrix: its last axis is kept."""
    if len(shape) == 2:
        return name
    return op.build.op("Reshape", name, op.build.ints([-1, *op.fixed(shape[-1:])]))


def _wider(one: Shape, two: Shape) -> Shape:
    """The shape to which two shapes are broadcast."""
    rank = max(len(one), len(two))
    padded = [(1,) * (rank - len(s)) + s for s in (one, two)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))


def einsum(op: Op) -> Adjoints:
    """The same sum with the adjoint in an operand's place."""
    told = op.text("equation", "").replace(" ", "")
    if "->" not in told or "." in told:
        op.refuse("its equation must name every axis, and those of its output after ->")
    left, out = told.split("->")
    operands = left.split(",")
    adjoints: list[str | None] = []
    for index, letters in enumerate(operands):
        others = [*operands[:index], *operands[index + 1 :], out]
        if len(set(letters)) < len(letters) or not set(letters) <= set("".join(others)):
            op.refuse(f"the axes {letters!r} must each be named once, and again elsewhere")
        names = [*op.inputs[:index], *op.inputs[index + 1 :], op.dy]
        equation = f"{','.join(others)}->{letters}"
        wanted = op.wants(index)
        adjoints.append(op.build.op("Einsum", *names, equation=equation) if wanted else None)
    return adjoints


RULES: Final[dict[str, Rule]] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
