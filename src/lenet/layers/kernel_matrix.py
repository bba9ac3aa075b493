"""A convolution is a linear map: the matrix that takes the flattened image to the flattened output.

    output.flatten() = K @ input.flatten()        K[(o, y, x), (c, y·s + i·d, x·s + j·d)] = weight[o, c, i, j]

(s: stride, d: dilation.) Each row of K holds the kernel once, shifted to where its window lies, and zeros elsewhere;
so K is stored sparse. Its transpose takes outputs back to images, which is what a transposed convolution is, and
where its name comes from.
"""

import torch
from torch import Tensor

from lenet.layers.geometry import Pair, is_traced, window_count


def kernel_matrix(weight: Tensor, size: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Tensor:
    """The matrix of a convolution with kernels (O, C, k_h, k_w), for images of one size (H, W), padding included.

    It is sparse, (O·H'·W', C·H·W), and differentiable with respect to `weight`; `to_dense()` shows it.
    """
    indices, values, shape = _entries(weight, size, stride, dilation)
    # Some versions warn where this is not said for all of them.
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        # Row by row and, within a row, from left to right: coalesced by construction.
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)


def _entries(weight: Tensor, size: Pair, stride: Pair, dilation: Pair) -> tuple[Tensor, Tensor, Pair]:
    """The entries of the matrix that may differ from zero: their rows and columns (2, n), values (n,); its shape."""
    out_channels, in_channels, *kernel_size = weight.shape
    height, width = window_count(size, (kernel_size[0], kernel_size[1]), stride, dilation)
    ranges = [torch.arange(n, device=weight.device) for n in (height, width, in_channels, *kernel_size)]
    y, x, c, i, j = torch.meshgrid(*ranges, indexing="ij")
    column = (c * size[0] + y * stride[0] + i * dilation[0]) * size[1] + x * stride[1] + j * dilation[1]
    row = torch.arange(out_channels * height * width, device=weight.device)
    columns = column.flatten().expand(out_channels, -1).flatten()
    indices = torch.stack([row.repeat_interleave(weight[:1].numel()), columns])
    values = weight[:, None, None].expand(-1, height, width, -1, -1, -1).flatten()
    return indices, values, (row.shape[0], in_channels * size[0] * size[1])


def conv2d(input: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Cross-correlation of (N, C, H, W) with (O, C, k_h, k_w): (N, O, H', W')."""
    size = (input.shape[2], input.shape[3])
    count = window_count(size, (weight.shape[2], weight.shape[3]), stride, dilation)
    images = input.flatten(1).T  # one column each
    # Compilers and torch.func do not know sparse matrices. And on a GPU, the library that multiplies these adds in any
    # order, and does not say so.
    if is_traced(input, weight) or (input.is_cuda and torch.are_deterministic_algorithms_enabled()):
        indices, values, shape = _entries(weight, size, stride, dilation)
        outputs = values.new_zeros(shape).index_put(tuple(indices), values) @ images
    else:
        outputs = torch.sparse.mm(kernel_matrix(weight, size, stride, dilation), images)
    return outputs.view(weight.shape[0], *count, input.shape[0]).permute(3, 0, 1, 2)
