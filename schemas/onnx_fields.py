"""The fields of an ONNX file: those that are understood, and those that are refused, and why.

Numbers and names: onnx/onnx.proto of ONNX 1.17 (IR 10). Whatever stands in neither is
refused too. Pure.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from schemas.protobuf import BYTES, FIXED32, FIXED64, VARINT


class Message(NamedTuple):
    """One kind of message.

    Attributes:
        known: numbers of the fields that are understood, and the kinds of value each may have.
        refused: fields that ONNX has and this does not take, and why.
    """

    known: Mapping[int, Collection[int]]
    refused: Mapping[int, str]


_COUNTS: Final = (VARINT, BYTES)
MODEL: Final = Message(
    {
        **dict.fromkeys((1, 5), (VARINT,)),
        **dict.fromkeys((2, 3, 4, 6, 7, 8, 14), (BYTES,)),
    },
    {
        20: "has training_info; import the inference model",
        25: "has functions of its own; inline them (onnx.inliner) and import it again",
        26: "is laid out for several machines; export it for one",
    },
)
OPSET: Final = Message({1: (BYTES,), 2: (VARINT,)}, {})
PORT: Final = Message(dict.fromkeys((1, 2, 3, 4), (BYTES,)), {})
"""ValueInfoProto: an input, an output, or a value between."""

GRAPH: Final = Message(
    dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 16), (BYTES,)),
    {15: "has sparse initializers; make them dense"},
)
NODE: Final = Message(
    dict.fromkeys(range(1, 10), (BYTES,)),
    {10: "is laid out for several machines; export the model for one"},
)
ATTRIBUTE: Final = Message(
    {
        **dict.fromkeys((1, 4, 5, 9, 10, 13), (BYTES,)),
        **dict.fromkeys((3, 20), (VARINT,)),
        2: (FIXED32,),
        7: (FIXED32, BYTES),
        8: _COUNTS,
    },
    {
        6: "holds a graph (If, Loop, Scan); unroll or fold it before the import",
        11: "holds graphs; unroll or fold them before the import",
        14: "holds a type; only tensors are computed with",
        15: "holds types; only tensors are computed with",
        21: "refers to a function's attribute; inline the functions (onnx.inliner)",
        22: "holds a sparse tensor; make it dense",
        23: "holds sparse tensors; make them dense",
    },
)
ELSEWHERE: Final = "lies in another file (external_data); save the model as one file"
TENSOR: Final = Message(
    {
        **dict.fromkeys((1, 5, 7, 11), _COUNTS),
        **dict.fromkeys((2, 14), (VARINT,)),
        **dict.fromkeys((6, 8, 9, 12, 16), (BYTES,)),
        4: (FIXED32, BYTES),
        10: (FIXED64, BYTES),
    },
    {3: "is a segment of a tensor; write it whole", 13: ELSEWHERE},
)
