"""Export a PyTorch module in the way that can be trained. torch is imported when it is asked to.

The default export may not be: it merges initializers that are equal, so that two fresh layers are
trained as one, and folds normalisation into convolutions, so that another network is trained. Both
are silent.
"""

import warnings
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import ConfigError


def export(module: Any, example: Any) -> onnx.ModelProto:
    """Export a module for inference, with every parameter as an initializer of its own.

    Other buffers than BatchNorm's statistics become constants: they are not trained.

    Args:
        module: a torch.nn.Module; it is put into evaluation mode.
        example: one input tensor, (batch, ...), the batch of at least 2.

    Returns:
        A model whose first dimension is open, of opset 18.

    Raises:
        ConfigError: torch is missing, cannot export the module, or has lost or merged parameters.
    """
    try:
        torch = import_module("torch")
    except ImportError as exc:
        remedy = "PyTorch is not installed: pip install torch==2.13.0"
        raise ConfigError("--torch", remedy) from exc
    if isinstance(example, tuple) and len(example) == 1:
        (example,) = example
    if not getattr(example, "ndim", 0) or example.shape[0] < 2:
        raise ConfigError("--torch", "the example must be one tensor, a batch of at least 2")
    try:
        with warnings.catch_warnings(action="ignore"):  # it tells what it does without
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                optimize=False,
                opset_version=18,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as exc:
        raise ConfigError("--torch", f"PyTorch cannot export the module: {exc}") from exc
    model: onnx.ModelProto = program.model_proto
    _settle(model, dict(module.named_parameters(remove_duplicate=False)))
    told = sum(parameter.numel() for parameter in module.parameters())
    check_count(model, told)
    return model


def check_count(model: onnx.ModelProto, parameters: int) -> None:
    """Compare how many numbers are trained in both. Raises ConfigError: they differ."""
    statistics = _statistics(model.graph.node)
    found = sum(
        numpy_helper.to_array(tensor).size
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in statistics
    )
    if found != parameters:
        raise ConfigError(
            "model",
            f"has {found} numbers to train, and the module {parameters}: export it with "
            "dynamo=True and optimize=False, use every parameter once, and freeze none",
        )


def _statistics(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    kinds = (node for node in nodes if node.op_type == "BatchNormalization")
    return {name for node in kinds for name in node.input[3:5]}


def _settle(model: onnx.ModelProto, parameters: dict[str, Any]) -> None:
    """Make constants of the float initializers that are no parameters."""
    graph = model.graph
    kept = _statistics(graph.node) | set(parameters)
    fixed = [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept
    ]
    nodes = [
        helper.make_node(
            "Constant", [], [tensor.name], name=f"{tensor.name}.constant", value=tensor
        )
        for tensor in fixed
    ]
    nodes.extend(graph.node)
    left = [tensor for tensor in graph.initializer if tensor not in fixed]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(left)
