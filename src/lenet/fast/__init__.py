"""The same training step, faster: LeNet compiled for the CPU and for GPUs, and any step as a CUDA graph."""

from lenet.fast.cuda import CudaTraining
from lenet.fast.graph import RecordedSteps, is_recordable
from lenet.fast.kernels.compiler import UnavailableError
from lenet.fast.network import CompiledNetwork, UnsuitableError, has_hooks

__all__ = ["CompiledNetwork", "CudaTraining", "RecordedSteps", "UnavailableError", "UnsuitableError", "has_hooks"]
__all__ += ["is_recordable"]
