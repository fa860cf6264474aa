"""The workshop: an ordinary inference ONNX model becomes a training step of standard operators.

    promoting -> shapes -> lowering -> autodiff (rules) -> step -> gradcheck

One rule an operator (`rules`), no I/O, no onnxruntime: whoever builds brings what runs a graph.
"""

from fedmq.onnx_training.building import Built, build
from fedmq.onnx_training.gradcheck import Run, Session

__all__ = ["Built", "Run", "Session", "build"]
