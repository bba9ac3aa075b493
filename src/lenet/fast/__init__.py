"""The same training step, faster: LeNet compiled for the CPU, and steps as CUDA graphs."""

from lenet.fast.graph import RecordedSteps
from lenet.fast.kernels.compiler import UnavailableError
from lenet.fast.network import CompiledNetwork, UnsuitableError, has_hooks

__all__ = ["CompiledNetwork", "RecordedSteps", "UnavailableError", "UnsuitableError", "has_hooks"]
