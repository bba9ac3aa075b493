"""A tour of convolution and pooling: what each operation computes, with its numbers and pictures.

The stops are C0 (see why.py) to C18, then trained networks. lenet.layers computes all values while scripts/tour.py
runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import Conv2d
from lenet.layers.functional import ALGORITHMS, avg_pool2d, conv2d, conv_transpose2d, max_pool2d
from lenet.layers.im2col import unrolled
from lenet.layers.kernel_matrix import kernel_matrix
from lenet.layers.plane import convolution, cross_correlation
from lenet.models import stages
from lenet.monitor.drawing import images, side_by_side
from lenet.reports.page import Page
from lenet.reports.why import add_why

X = torch.arange(9.0).view(3, 3)
K = torch.arange(4.0).view(2, 2)
X2, K2 = torch.stack([X, X + 1]), torch.stack([K, K + 1])
K3 = torch.stack([K2, K2 + 1, K2 + 2])
EDGES = torch.ones(6, 8)
EDGES[:, 2:6] = 0
EDGE_KERNEL = torch.tensor([[1.0, -1.0]])


def add_stops(page: Page) -> None:
    """Add the stops C0 to C18 to a page."""
    for chapter in (add_why, planes, learning, channels, algorithms, pooling, gradients):
        torch.manual_seed(0)
        chapter(page)


def planes(page: Page) -> None:
    page.section("C1", "Cross-correlation")
    page.text("The kernel slides over the image. At each position, the pixels below are multiplied by it and summed.")
    page.text("The first value: 0·0 + 1·1 + 3·2 + 4·3 = 19. In deep learning this is called a convolution.")
    page.code(side_by_side({"X": X, "K": K, "cross_correlation(X, K)": cross_correlation(X, K)}))

    page.section("C2", "True convolution")
    page.text("In mathematics, the kernel is flipped along both axes first. For a learned kernel this changes nothing.")
    page.code(side_by_side({"X": X, "K flipped": K.flip(0, 1), "convolution(X, K)": convolution(X, K)}))

    page.section("C3", "A kernel that finds edges")
    page.text("The kernel [1, -1] subtracts from each pixel its right neighbour: only vertical edges remain.")
    found = cross_correlation(EDGES, EDGE_KERNEL)
    page.code(side_by_side({"a row of the image": EDGES[:1], "the same row of the output": found[:1]}))
    vertical = {"image, 6×8": EDGES, "vertical edges, 6×7": found}
    page.picture(images(vertical), "1 is black in the image. In the output, +1 is red and -1 is blue.")

    page.section("C4", "Other directions, other kernels")
    page.text("The transposed kernel finds horizontal edges. [[1, 0], [0, -1]] compares diagonal neighbours.")
    horizontal = {"transposed image": EDGES.T, "horizontal edges": cross_correlation(EDGES.T, EDGE_KERNEL.T)}
    triangle = torch.ones(8, 8).triu().flip(1)
    diagonal = {"diagonal image": triangle, "diagonal edges": cross_correlation(triangle, torch.diag(EDGE_KERNEL[0]))}
    page.picture(images(horizontal | diagonal), "Each kernel finds the edges of one direction.")


def learning(page: Page) -> None:
    page.section("C5", "Learning the kernel")
    page.text("Ten steps of gradient descent (learning rate 0.03, squared errors) find [1, -1] from random weights.")
    wanted = cross_correlation(EDGES, EDGE_KERNEL)
    kernel = nn.Conv2d(1, 1, (1, 2), bias=False).weight.detach()[0, 0]
    rows, outputs = [], {"wanted": wanted}
    for step in range(11):
        kernel.requires_grad_()
        output = cross_correlation(EDGES, kernel)
        loss = ((output - wanted) ** 2).sum()
        rows.append([f"{step}", f"{loss.item():.3f}", *(f"{weight:.3f}" for weight in kernel[0].tolist())])
        if step in (0, 2, 10):
            outputs[f"after {step} steps"] = output
        kernel = (kernel - 0.03 * torch.autograd.grad(loss, kernel)[0]).detach()
    page.table(["steps", "loss", "weight 1", "weight 2"], rows[::2])
    page.picture(images(outputs), "The output approaches the wanted one.")


def channels(page: Page) -> None:
    page.section("C6", "Several input channels")
    page.text("An image with two channels needs a kernel with two. The results of the channels are added.")
    matrices = {"channel 1": X2[0], "channel 2": X2[1], "kernel 1": K2[0], "kernel 2": K2[1]}
    page.code(side_by_side(matrices | {"sum": conv2d(X2, K2[None])[0]}))

    page.section("C7", "Several output channels")
    page.text("Each output channel has its own kernel. The weight is (output channels, input channels, height, width).")
    names = ("output of K", "output of K + 1", "output of K + 2")
    page.code(side_by_side(dict(zip(names, conv2d(X2, K3), strict=True))))

    page.section("C8", "A 1×1 convolution mixes channels")
    page.text("A 1×1 kernel sees no neighbours. It is a matrix product over the channels, the same at each pixel.")
    image, kernel = torch.randn(3, 3, 3), torch.randn(2, 3, 1, 1)
    product = (kernel.view(2, 3) @ image.view(3, 9)).view(2, 3, 3)
    page.code(f"largest difference: {_difference(conv2d(image, kernel), product)}")

    page.section("C9", "Padding and stride")
    page.text("Padding adds zeros around the image. The stride is the distance between two positions of the window.")
    rows = []
    cases = [((3, 3), (1, 1), (1, 1)), ((5, 3), (2, 1), (1, 1)), ((3, 3), (1, 1), (2, 2)), ((3, 5), (0, 1), (3, 4))]
    for size, padding, stride in cases:
        output = conv2d(torch.rand(1, 8, 8), torch.rand(1, 1, *size), stride=stride, padding=padding)
        rows.append([_times(size), _times(padding), _times(stride), _times(output.shape[1:])])
    page.table(["kernel", "padding", "stride", "output of an 8×8 image"], rows)


def algorithms(page: Page) -> None:
    page.section("C10", "Five algorithms")
    page.text("A convolution can be a matrix product: the windows become the columns of a matrix (im2col).")
    image, kernel = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    (columns,) = unrolled(image, (3, 3), (1, 1), (1, 1))
    matrices = {"image": image[0, 0], "kernel": kernel[0, 0], "windows as columns, 9×4": columns}
    page.picture(images(matrices), "Each column is one window of the image, written row by row.")
    page.text("Or the kernel becomes a matrix that multiplies the flattened image.")
    matrix = kernel_matrix(kernel, (4, 4)).to_dense()
    page.picture(images({"kernel matrix, 4×16": matrix}), "Each row is the kernel at one position. White is zero.")
    page.text("All algorithms, with their largest difference from PyTorch's convolution (padding 1, stride 2):")
    rows = []
    for name in ALGORITHMS:
        output = conv2d(image, kernel, stride=2, padding=1, algorithm=name)
        rows.append([name, _difference(output, F.conv2d(image, kernel, stride=2, padding=1))])
    page.table(["algorithm", "difference"], rows)

    page.section("C11", "Transposed convolution")
    page.text("The transposed kernel matrix turns an output into an image of the original size, with other values.")
    output = conv2d(image, kernel)
    product = (matrix.T @ output.flatten()).view(4, 4)
    results = {"transposed matrix": product, "conv_transpose2d": conv_transpose2d(output, kernel)[0, 0]}
    page.code(side_by_side(results, ".3f"))

    page.section("C12", "Batches, bias, padding and stride together")
    page.text("Two 5×5 images of ones with two channels; three 3×3 kernels of ones; bias 1, padding 1, stride 2.")
    output = conv2d(torch.ones(2, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.ones(3), padding=1, stride=2)
    page.code(f"shape {tuple(output.shape)}\n{side_by_side({'each of the 2·3 planes': output[0, 0]})}")
    page.text("A corner window covers 4 pixels in 2 channels: 8, and the bias makes it 9.")

    page.section("C13", "Groups and dilation")
    page.text("Groups divide the channels: each has its own convolution. Dilation spreads the kernel, with gaps.")
    batch, kernels = torch.randn(2, 2, 7, 7), torch.randn(4, 1, 3, 3)
    output = conv2d(batch, kernels, groups=2, dilation=2, stride=2, padding=1)
    expected = F.conv2d(batch, kernels, groups=2, dilation=2, stride=2, padding=1)
    page.code(f"shape {tuple(output.shape)}, largest difference from PyTorch {_difference(output, expected)}")


def pooling(page: Page) -> None:
    page.section("C14", "Pooling")
    page.text("A pooling window has no weights. It keeps the maximum of its values, or their average.")
    maximum, average = max_pool2d(X[None], 2, stride=1)[0], avg_pool2d(X[None], 2, stride=1)[0]
    page.code(side_by_side({"X": X, "maximum": maximum, "average": average}))

    page.section("C15", "Stride and padding of pooling")
    page.text("The stride is the window's size unless another is given. In max pooling, padding counts as -∞.")
    x = torch.arange(16.0).view(1, 4, 4)
    pooled = {"X": x, "3×3": max_pool2d(x, 3), "3×3, padding 1, stride 2": max_pool2d(x, 3, padding=1, stride=2)}
    pooled["2×3, padding 0×1"] = max_pool2d(x, (2, 3), padding=(0, 1))
    pooled["2×3, padding 1×1"] = max_pool2d(x, (2, 3), padding=(1, 1))
    page.code(side_by_side({name: planes[0] for name, planes in pooled.items()}))

    page.section("C16", "Pooling of several channels")
    page.text("Each channel is pooled separately, so the number of channels stays the same.")
    both = max_pool2d(torch.cat([x, x + 1]), 3, padding=1, stride=2)
    page.code(side_by_side({"channel 1": both[0], "channel 2": both[1]}))


def gradients(page: Page) -> None:
    page.section("C17", "The receptive field")
    page.text("One output of two stacked 2×2 convolutions depends on 3×3 pixels: its receptive field.")
    page.text("Each layer enlarges it. After a layer with stride s, the steps of the next ones are s times as wide.")
    net, seen = nn.Sequential(), {}
    for depth in (1, 2, 3, 4):
        net.append(Conv2d(1, 1, 2))
        image = torch.rand(1, 1, 7, 7, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(image)[0, 0, 1, 1], image)
        field = stages(net, (1, 7, 7))[-1].receptive_field or ()
        seen[f"layers: {depth}, field: {_times(field)}"] = (gradient[0, 0] != 0).float()
    page.picture(images(seen), "Black: the pixels on which one output value depends, as its gradient shows.")

    page.section("C18", "Gradients")
    page.text("All algorithms are differentiable. The largest differences from PyTorch's gradients, in float64:")
    shapes = (2, 2, 6, 6), (3, 2, 3, 3), (3,)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    image, weight, bias = tensors
    expected = torch.autograd.grad(F.conv2d(image, weight, bias).square().sum(), tensors)
    rows = []
    for name in ALGORITHMS:
        output = conv2d(image, weight, bias, algorithm=name)
        ours = torch.autograd.grad(output.square().sum(), tensors)
        rows.append([name, *map(_difference, ours, expected)])
    page.table(["algorithm", "input", "weight", "bias"], rows)


def _times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def _difference(ours: Tensor, theirs: Tensor) -> str:
    return f"{(ours - theirs).abs().max():.1e}"
