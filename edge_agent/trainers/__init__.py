"""Built-in trainers in numpy: softmax regression, and networks of ReLU layers.

Pure mathematics: no clock, no log, no thread; the generator is an argument. The one file that is
ever read (`data=mine.npz`) is read in `edge_agent.trainers.data`.
"""

from edge_agent.trainers.evaluation import HeldOut, accuracy, cross_entropy, predict
from edge_agent.trainers.mlp import MlpTrainer
from edge_agent.trainers.softmax import SoftmaxTrainer

__all__ = ["HeldOut", "MlpTrainer", "SoftmaxTrainer", "accuracy", "cross_entropy", "predict"]
