"""Softmax regression on this device's examples: tensors {"W": (d, c), "b": (c,)}."""

from edge_agent.trainers.layers import SOFTMAX_NAMES, LayerNames, Tensors
from edge_agent.trainers.local_training import LocalTrainer


class SoftmaxTrainer(LocalTrainer):
    """A Trainer for `fedmq-agent --trainer edge_agent.trainers:SoftmaxTrainer`."""

    def layers(self, tensors: Tensors) -> LayerNames:
        """Its one layer. Raises ValueError when the tensors are others."""
        if set(tensors) != {"W", "b"}:
            raise ValueError(f"tensors {sorted(tensors)} are not ['W', 'b']: try MlpTrainer")
        return SOFTMAX_NAMES
