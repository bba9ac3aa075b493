"""Convolution and pooling from scratch: layers that take the place of torch.nn's, and the algorithms behind them.

Nothing here calls PyTorch's convolution, pooling, unfold or fold; and nothing here needs more than PyTorch.
"""

from lenet.layers.modules import AvgPool2d, Conv2d, ConvTranspose2d, MaxPool2d

__all__ = ["AvgPool2d", "Conv2d", "ConvTranspose2d", "MaxPool2d"]
