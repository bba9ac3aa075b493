"""LeNet's training on a GPU: one kernel launch for many steps."""

from lenet.fast.cuda.training import CudaTraining

__all__ = ["CudaTraining"]
