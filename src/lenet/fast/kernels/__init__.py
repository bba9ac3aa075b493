"""Calls the functions of kernels.c.

C refuses sizes it was not compiled for. What it cannot see, the type of numbers and where they lie, is checked here.
"""

from ctypes import c_float, c_long, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from lenet.fast.kernels.compiler import load

# The layers that the kernels know, with their numbers in lanes.h; there, 0 is no activation.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Sigmoid: 1, nn.ReLU: 2}
POOLINGS: dict[type[nn.Module], int] = {nn.AvgPool2d: 0, nn.MaxPool2d: 1}


def lanes() -> int:
    """How many images lie side by side in a group."""
    return int(load().lane_count())


def call(name: str, *arguments: Any) -> None:
    """Call a function with tensors as pointers, lists as arrays, numbers as long or float, and how many threads.

    Raises a ValueError if C was not compiled for the arrays' sizes, an IndexError if a label is out of range.
    """
    failure = getattr(load(), name)(*map(as_c, arguments), c_long(torch.get_num_threads()))
    if failure:  # the errors are in the order of the enumeration in kernels.c
        sizes = ValueError(f"{name} was not compiled for arrays of these sizes")
        raise [MemoryError("no memory is left"), IndexError("a label is not one of 0 to 9"), sizes][failure - 1]


def is_readable(tensor: Tensor, *dtypes: torch.dtype, device: str = "cpu") -> bool:
    """Whether C can read the tensor: one of PyTorch's own classes, dense, on such a device, of one of these types."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.device.type == device and tensor.dtype in (dtypes or (torch.float32,))


def readable(tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The tensor, contiguous and aligned as vector registers need it; raises a ValueError if C cannot read it."""
    if not is_readable(tensor, *dtypes):
        raise ValueError(f"C cannot read a {type(tensor).__name__} of {tensor.dtype} on {tensor.device}")
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def empty(*shape: int) -> Tensor:
    """For results, whatever the user's default type and device are; PyTorch aligns them."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def as_c(argument: Any) -> Any:
    """A tensor as a pointer, a list as an array, a number as long or float; what is one of C's already, stays."""
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    if isinstance(argument, list):
        kind = c_void_p if isinstance(argument[0], Tensor) else c_long
        return (kind * len(argument))(*map(as_c, argument))
    if isinstance(argument, float):
        return c_float(argument)
    return c_long(argument) if isinstance(argument, int) else argument
