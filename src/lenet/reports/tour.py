"""A walk through convolution and pooling: what each step computes, its numbers, and pictures of it.

The stops are C1 to C18, in the order in which the ideas build on each other, and a LeNet at the end; scripts/tour.py
runs it. Everything is computed on the spot by lenet.layers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import Conv2d
from lenet.layers.functional import (
    ALGORITHMS,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    convolution,
    cross_correlation,
    max_pool2d,
    unfold,
)
from lenet.layers.kernel_matrix import kernel_matrix
from lenet.models.summary import stages
from lenet.monitor.drawing import images, matrix_text, side_by_side
from lenet.reports.page import Page

X = torch.arange(9.0).view(3, 3)
K = torch.arange(4.0).view(2, 2)
X2, K2 = torch.stack([X, X + 1]), torch.stack([K, K + 1])
K3 = torch.stack([K2, K2 + 1, K2 + 2])
EDGES = torch.ones(6, 8)
EDGES[:, 2:6] = 0


def add_stops(page: Page) -> None:
    """Add the stops C1 to C18 to a page."""
    _planes(page)
    _edges(page)
    _learning(page)
    _channels(page)
    _shapes(page)
    _ways(page)
    _options(page)
    _pooling(page)
    _receptive_field(page)
    _gradients(page)


def _planes(page: Page) -> None:
    page.section("C1", "Cross-correlation")
    page.text(
        "A small window, the kernel, slides over the image. Wherever it stops, what lies under it is multiplied with"
        " the kernel, value by value, and summed up. Deep learning calls this a convolution."
    )
    page.numbers(side_by_side({"X": X, "K": K, "cross_correlation(X, K)": cross_correlation(X, K)}))
    page.text("The first value: 0·0 + 1·1 + 3·2 + 4·3 = 19. A 2×2 kernel fits into a 3×3 image in 2×2 places.")

    page.section("C2", "True convolution")
    page.text(
        "Mathematics flips the kernel in both directions first. For a kernel that is learned it makes no difference."
    )
    page.numbers(side_by_side({"X": X, "K flipped": K.flip(0, 1), "convolution(X, K)": convolution(X, K)}))


def _edges(page: Page) -> None:
    page.section("C3", "A kernel that finds edges")
    kernel = torch.tensor([[1.0, -1.0]])
    found = cross_correlation(EDGES, kernel)
    page.text(
        "The kernel [1, -1] subtracts each pixel's right neighbour. The result is 0 but where brightness changes."
    )
    page.numbers(side_by_side({"a row of the image": EDGES[:1], "the same row of the output": found[:1]}))
    page.picture(
        images({"image, 6×8": EDGES, "vertical edges, 6×7": found, "transposed image": EDGES.T,
                "vertical edges there: none": cross_correlation(EDGES.T, kernel)}),
        "An edge image before and after: 1 is drawn black; +1 (red) where 1 turns to 0, -1 (blue) where 0 turns to 1.",
    )  # fmt: skip

    page.section("C4", "Other directions, other kernels")
    page.text(
        "Turned, the kernel finds horizontal edges; [[1, 0], [0, -1]] compares a pixel with its diagonal neighbour."
    )
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    diagonal = (row + column < 8).float()
    page.picture(
        images({"transposed image": EDGES.T, "horizontal edges": cross_correlation(EDGES.T, kernel.T),
                "diagonal image": diagonal,
                "diagonal edges": cross_correlation(diagonal, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))}),
        "What a kernel finds is what it was made for.",
    )  # fmt: skip


def _learning(page: Page) -> None:
    page.section("C5", "Learning the kernel")
    page.text(
        "Nobody has to think of [1, -1]. From the image and the wanted output alone, ten steps of gradient descent"
        " (learning rate 0.03, sum of squared errors) find it, from a random start."
    )
    target = cross_correlation(EDGES, torch.tensor([[1.0, -1.0]]))
    torch.manual_seed(0)
    weight = nn.Conv2d(1, 1, (1, 2), bias=False).weight.detach()[0, 0].requires_grad_()
    weights, losses = [weight.detach().clone()], []
    for _ in range(10):
        loss = ((cross_correlation(EDGES, weight) - target) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(loss.item())
        weight = (weight - 0.03 * gradient).detach().requires_grad_()
        weights.append(weight.detach())
    losses.append(((cross_correlation(EDGES, weight) - target) ** 2).sum().item())
    lines = [
        f"step {n + 1:>2}: loss {losses[n + 1]:7.3f}, kernel {_row(weights[n + 1][0], '.3f')}" for n in (1, 3, 5, 7, 9)
    ]
    page.numbers("\n".join(lines))
    figure = Figure(figsize=(8, 2.8))
    left, right = figure.subplots(1, 2)
    left.semilogy(range(11), losses, marker="o")
    left.set(xlabel="step", ylabel="loss", title="loss after the step")
    for position, wanted in enumerate((1, -1)):
        right.plot(
            range(11), [float(values[0, position]) for values in weights], marker="o", label=f"weight {position + 1}"
        )
        right.axhline(wanted, color="grey", linewidth=0.8, linestyle=":")
    right.set(xlabel="step", title="learned kernel")
    right.legend()
    page.picture(figure, "The loss falls, and the two weights approach 1 and -1.")


def _channels(page: Page) -> None:
    page.section("C6", "Several input channels")
    page.text(
        "An image with two channels needs a kernel with two. Each is cross-correlated on its own; the results add up."
    )
    page.numbers(side_by_side({"channel 1": X2[0], "channel 2": X2[1], "kernel 1": K2[0], "kernel 2": K2[1],
                               "sum": conv2d(X2, K2[None])[0]}))  # fmt: skip

    page.section("C7", "Several output channels")
    page.text(
        "Each output channel has a kernel of its own: the weight is (output channels, input channels, height, width)."
    )
    names = ("output of K", "output of K + 1", "output of K + 2")
    page.numbers(side_by_side(dict(zip(names, conv2d(X2, K3), strict=True))))

    page.section("C8", "A 1×1 convolution mixes channels")
    torch.manual_seed(0)
    image, kernel = torch.randn(3, 3, 3), torch.randn(2, 3, 1, 1)
    product = (kernel.view(2, 3) @ image.view(3, 9)).view(2, 3, 3)
    difference = (conv2d(image, kernel) - product).abs().sum().item()
    page.text("Without neighbours nothing is left but a matrix product over the channels, pixel by pixel.")
    page.numbers(f"sum of absolute differences from the matrix product: {difference:.1e}")


def _shapes(page: Page) -> None:
    page.section("C9", "Padding and stride")
    page.text("Padding puts zeros around the image, the stride is how far the window moves. On an 8×8 image:")
    lines = [f"{'kernel':<9}{'padding':<10}{'stride':<9}output"]
    for kernel, padding, stride in [
        ((3, 3), (1, 1), (1, 1)),
        ((5, 3), (2, 1), (1, 1)),
        ((3, 3), (1, 1), (2, 2)),
        ((3, 5), (0, 1), (3, 4)),
    ]:
        output = conv2d(torch.rand(1, 1, 8, 8), torch.rand(1, 1, *kernel), stride=stride, padding=padding)
        size = (output.shape[2], output.shape[3])
        lines.append(f"{_times(kernel):<9}{_times(padding):<10}{_times(stride):<9}{_times(size)}")
    page.numbers("\n".join(lines))


def _ways(page: Page) -> None:
    page.section("C10", "Five ways to compute it")
    torch.manual_seed(0)
    image, kernel = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    page.text(
        "The definition can be rearranged. Unroll the windows into columns, and one matrix product does it (im2col). Or"
        " unroll the kernel into a matrix that multiplies the flattened image. Here is a 3×3 kernel on a 4×4 image."
    )
    columns, matrix = unfold(image, 3)[0], kernel_matrix(kernel, (4, 4)).to_dense()
    page.picture(
        images({"image": image[0, 0], "kernel": kernel[0, 0], "windows as columns, 9×4": columns}),
        "Each column is one window of the image, from the first row to the last.",
    )
    page.picture(
        images({"kernel matrix, 4×16": matrix}),
        "Each row holds the kernel once, where its window lies in the flattened image; white is zero.",
    )
    lines = [f"{'stride':<8}{'padding':<9}" + "".join(f"{name:>15}" for name in ALGORITHMS)]
    for stride in (1, 2):
        for padding in (0, 1):
            builtin = F.conv2d(image, kernel, stride=stride, padding=padding)
            errors = [
                (conv2d(image, kernel, stride=stride, padding=padding, algorithm=name) - builtin).abs().max().item()
                for name in ALGORITHMS
            ]
            lines.append(f"{stride:<8}{padding:<9}" + "".join(f"{error:>15.1e}" for error in errors))
    page.text("All five, and their largest difference from PyTorch's own:")
    page.numbers("\n".join(lines))

    page.section("C11", "Transposed convolution")
    output = conv2d(image, kernel)
    back = (matrix.T @ output.flatten()).view(4, 4)
    page.text(
        "The transpose of that matrix takes an output back to the size of its image, though not to its values: that is"
        " the transposed convolution."
    )
    page.numbers(
        side_by_side({"transposed matrix": back, "conv_transpose2d": conv_transpose2d(output, kernel)[0, 0]}, ".3f")
    )


def _options(page: Page) -> None:
    page.section("C12", "Batches, bias, padding and stride together")
    arguments = (torch.ones(2, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.ones(3))
    output = conv2d(*arguments, padding=1, stride=2)
    page.text(
        "Two images of ones, two channels to three, 3×3 ones, bias 1, padding 1, stride 2. In a corner: 4 pixels in"
        " 2 channels, and the bias, 9."
    )
    page.numbers(f"shape {tuple(output.shape)}; each of the 2·3 planes is\n{matrix_text(output[0, 0])}")

    page.section("C13", "Groups and dilation")
    torch.manual_seed(0)
    images_, weight = torch.randn(2, 2, 7, 7), torch.randn(4, 1, 3, 3)
    output = conv2d(images_, weight, groups=2, dilation=2, stride=2, padding=1)
    expected = F.conv2d(images_, weight, groups=2, dilation=2, stride=2, padding=1)
    page.text("Groups are convolutions side by side, each on its own channels. Dilation leaves gaps in the kernel.")
    page.numbers(f"shape {tuple(output.shape)}, largest difference from PyTorch {(output - expected).abs().max():.1e}")
    try:
        conv2d(torch.randn(2, 3, 7, 7), weight, groups=2)
    except RuntimeError as error:
        page.text("Three channels cannot be shared by two groups:")
        page.numbers(f"RuntimeError: {error}")


def _pooling(page: Page) -> None:
    page.section("C14", "Pooling")
    page.text("A window slides here too, but without weights: it keeps the largest value, or the average.")
    largest, average = max_pool2d(X[None], 2, stride=1)[0], avg_pool2d(X[None], 2, stride=1)[0]
    page.numbers(side_by_side({"X": X, "largest": largest, "average": average}))

    page.section("C15", "The stride of pooling")
    x = torch.arange(16.0).view(1, 1, 4, 4)
    page.text(
        "Windows do not overlap by default: the stride is the window's size. Here, padding counts as -∞: it never wins."
    )
    page.numbers(
        side_by_side({
            "X": x[0, 0],
            "3×3": max_pool2d(x, 3)[0, 0],
            "3×3, padding 1, stride 2": max_pool2d(x, 3, padding=1, stride=2)[0, 0],
            "2×3, padding 0×1": max_pool2d(x, (2, 3), padding=(0, 1))[0, 0],
            "2×3, padding 1×1": max_pool2d(x, (2, 3), padding=(1, 1))[0, 0],
        })
    )  # fmt: skip

    page.section("C16", "Channel by channel")
    both = max_pool2d(torch.cat([x, x + 1], dim=1), 3, padding=1, stride=2)[0]
    page.text("Pooling keeps the number of channels: each is pooled on its own.")
    page.numbers(side_by_side({"channel 1": both[0], "channel 2": both[1]}))
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.sin(row / 2) + torch.cos(column * row / 20)
    page.picture(
        images({"16×16": waves, "largest of 2×2": max_pool2d(waves[None], 2)[0],
                "average of 2×2": avg_pool2d(waves[None], 2)[0], "average of 4×4": avg_pool2d(waves[None], 4)[0]}),
        "Pooling: a smaller image that still shows the same.",
    )  # fmt: skip


def _receptive_field(page: Page) -> None:
    page.section("C17", "The receptive field grows")
    page.text(
        "Stacked small windows see far: one output of two stacked 2×2 convolutions depends on 3×3 pixels. Each further"
        " layer adds to that; a stride of s makes each step of the layers behind it s pixels wide."
    )
    net: list[nn.Module] = []
    seen = {}
    for depth in range(1, 5):
        net.append(Conv2d(1, 1, 2))
        image = torch.rand(1, 1, 7, 7, requires_grad=True)
        output = nn.Sequential(*net)(image)[0, 0, 1, 1]
        (gradient,) = torch.autograd.grad(output, image)
        field = stages(nn.Sequential(*net), (1, 7, 7))[-1].receptive_field
        seen[f"{depth} layer{'s' * (depth > 1)}: {_times(field)}"] = (gradient[0, 0] != 0).float()
    page.picture(images(seen), "Black: the pixels on which one output value depends, found by its gradient.")


def _gradients(page: Page) -> None:
    page.section("C18", "Differentiable, all of them")
    torch.manual_seed(0)
    sizes = (2, 2, 6, 6), (3, 2, 3, 3), (3,)
    image, weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    expected = torch.autograd.grad(F.conv2d(image, weight, bias).square().sum(), (image, weight, bias))
    page.text(
        "Gradients flow through all five, to the input, the weight and the bias; here is the largest difference of"
        " each from PyTorch's, in double precision:"
    )
    lines = [f"{'algorithm':<15}{'input':>10}{'weight':>10}{'bias':>10}"]
    for name in ALGORITHMS:
        gradients = torch.autograd.grad(
            conv2d(image, weight, bias, algorithm=name).square().sum(), (image, weight, bias)
        )
        errors = [(ours - theirs).abs().max().item() for ours, theirs in zip(gradients, expected, strict=True)]
        lines.append(f"{name:<15}" + "".join(f"{error:>10.1e}" for error in errors))
    page.numbers("\n".join(lines))


def add_lenet(page: Page, net: nn.Module, image: Tensor, classes: tuple[str, ...], test_acc: float) -> None:
    """Add the last stop: a trained LeNet's filters, and what they make of one image (28, 28) with values in [0, 1]."""
    page.section("LeNet", "What a trained LeNet sees")
    first = net.get_submodule("conv1")
    page.text(
        f"This one was trained just now; its first layer is {first}. It gets {test_acc:.1%} of the test images right."
    )
    assert isinstance(first.weight, Tensor)
    page.picture(
        images({f"filter {n + 1}": kernel[0] for n, kernel in enumerate(first.weight.detach())}, signed=True),
        "The six filters of the first layer, as training left them: red is positive, blue negative.",
    )
    with torch.no_grad():
        values = image[None, None]
        maps = {}
        for name, stage in net.named_children():
            values = maps[name] = stage(values)
    page.picture(images({"image, 28×28": image}, width=240), "One test image.")
    for name, caption in (
        ("act1", "A feature map per channel: what each filter finds, after the activation (6×28×28)."),
        ("pool1", "Pooled (6×14×14)."),
        ("act2", "The second convolution combines all six into sixteen (16×10×10)."),
    ):
        page.picture(images({f"{n + 1}": plane for n, plane in enumerate(maps[name][0])}, per_row=8), caption)
    shares = values.softmax(dim=1)[0]
    best = shares.topk(3).indices.tolist()
    page.text("And its verdict, from 84 numbers that the linear layers make of that:")
    width = max(map(len, classes)) + 2
    page.numbers("\n".join(f"{classes[label]:<{width}}{shares[label]:>6.1%}" for label in best))


def _row(values: Iterable[Tensor], form: str) -> str:
    return "[" + ", ".join(f"{float(value):{form}}" for value in values) + "]"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
