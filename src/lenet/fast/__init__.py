"""The same training step, faster: LeNet compiled for the CPU."""

from lenet.fast.kernels.compiler import UnavailableError
from lenet.fast.network import CompiledNetwork, UnsuitableError

__all__ = ["CompiledNetwork", "UnavailableError", "UnsuitableError"]
