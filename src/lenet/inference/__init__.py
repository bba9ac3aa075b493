"""What one does with a trained network: load it, evaluate it, predict with it."""

from lenet.inference.model import TrainedNetwork, load

__all__ = ["TrainedNetwork", "load"]
