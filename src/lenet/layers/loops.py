"""The definition: slide the window over the image, multiply with the kernel, sum.

    output[n, o, y, x] = Σ_c Σ_i Σ_j  input[n, c, y·s + i·d, x·s + j·d] · weight[o, c, i, j]

s is the stride and d the dilation, each of the direction it stands in. One step of the loop is one window position
(y, x), for all images n and all output channels o at once. The outputs are gathered in a list and stacked: writing
them into one tensor, one by one, would add as many steps to autograd's graph, and each would copy the whole gradient.
"""

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, positions, span, window_count


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    kernel_size = (weight.shape[2], weight.shape[3])
    height, width = window_count(input.shape, kernel_size, stride, dilation)
    covered = span(kernel_size, dilation)
    outputs = []
    for y, x in positions((height, width)):
        top, left = y * stride[0], x * stride[1]
        window = input[:, :, top : top + covered[0] : dilation[0], left : left + covered[1] : dilation[1]]
        outputs.append((window[:, None] * weight).sum(dim=(2, 3, 4)))  # (N, 1, C, k_h, k_w) · (O, C, k_h, k_w)
    return torch.stack(outputs).view(height, width, input.shape[0], weight.shape[0]).permute(2, 3, 0, 1)
