"""A ReLU network on this device's examples: tensors {"W1", "b1", "W2", "b2", ...}."""

from edge_agent.trainers.layers import SOFTMAX_NAMES, LayerNames, Tensors, layer_names
from edge_agent.trainers.local_training import LocalTrainer


class MlpTrainer(LocalTrainer):
    """A Trainer for `fedmq-agent --trainer edge_agent.trainers:MlpTrainer`.

    The task's tensors tell how many layers there are and how wide (`schemas.initial.mlp_shapes`).
    """

    def layers(self, tensors: Tensors) -> LayerNames:
        """Find the layers. Raises ValueError when they are softmax regression's."""
        names = layer_names(tensors)
        if names == SOFTMAX_NAMES:
            raise ValueError("tensors 'W' and 'b' are softmax regression: try SoftmaxTrainer")
        return names
