"""The rows of the table of golden facts on convolution and pooling, C1 to C18, for each algorithm they apply to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import Conv2d
from lenet.layers import functional as ours
from lenet.layers.kernel_matrix import kernel_matrix
from tests.layers.cases import assert_close, each_algorithm

X = torch.arange(9.0).view(3, 3)
K = torch.arange(4.0).view(2, 2)
X2 = torch.stack([X, X + 1])
K2 = torch.stack([K, K + 1])
K3 = torch.stack([K2, K2 + 1, K2 + 2])
X16 = torch.arange(16.0).view(1, 1, 4, 4)

EDGES = torch.ones(6, 8)
EDGES[:, 2:6] = 0


def plane(image: Tensor, kernel: Tensor, algorithm: str) -> Tensor:
    """One image and one kernel, by the two-dimensional definition or by an algorithm."""
    if algorithm == "definition":
        return ours.cross_correlation(image, kernel)
    return ours.conv2d(image[None, None], kernel[None, None], algorithm=algorithm)[0, 0]


def assert_is(values: Tensor, expected: object, algorithm: str = "") -> None:
    """Exactly so; but a Fourier transform rounds."""
    wanted = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4 if algorithm == "fft" else 0)


each_way = pytest.mark.parametrize("algorithm", ["definition", "loops", "taps", "im2col", "kernel_matrix", "fft"])


@each_way
def test_c1_cross_correlation(algorithm: str) -> None:
    assert_is(plane(X, K, algorithm), [[19, 25], [37, 43]], algorithm)


@each_way
def test_c2_true_convolution(algorithm: str) -> None:
    expected = [[5, 11], [23, 29]]
    assert_is(plane(X, K.flip(0, 1), algorithm), expected, algorithm)
    if algorithm == "definition":
        assert_is(ours.convolution(X, K), expected)


@each_way
def test_c3_edge_detection(algorithm: str) -> None:
    kernel = torch.tensor([[1.0, -1.0]])
    assert_is(plane(EDGES, kernel, algorithm), [[0, 1, 0, 0, 0, -1, 0]] * 6, algorithm)
    assert_is(plane(EDGES.T, kernel, algorithm), torch.zeros(8, 5), algorithm)


@each_way
def test_c4_horizontal_and_diagonal_edges(algorithm: str) -> None:
    found = plane(EDGES.T, torch.tensor([[1.0], [-1.0]]), algorithm)
    assert_is(found, torch.tensor([[0, 1, 0, 0, 0, -1, 0]] * 6).T, algorithm)
    diagonal = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    # Constant along the diagonals that the kernel follows, a step across them.
    assert_is(plane(torch.ones(6, 6).triu(), diagonal, algorithm), torch.zeros(5, 5), algorithm)
    row, column = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    step = (row + column <= 5).float()
    crossed = (row + column)[:5, :5]
    assert_is(plane(step, diagonal, algorithm), (crossed == 4) | (crossed == 5), algorithm)


@each_way
@pytest.mark.parametrize(("learning_rate", "least", "most"), [(2e-2, 0.011, 0.24), (3e-2, 0.001, 0.54)])
def test_c5_a_kernel_is_learned(algorithm: str, learning_rate: float, least: float, most: float) -> None:
    target = torch.tensor([[0.0, 1, 0, 0, 0, -1, 0]] * 6)
    for seed in range(20):
        torch.manual_seed(seed)
        weight = nn.Conv2d(1, 1, (1, 2), bias=False).weight.detach()[0, 0].requires_grad_()
        for _ in range(10):
            loss = ((plane(EDGES, weight, algorithm) - target) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= learning_rate * gradient
        assert least <= loss.item() <= most, f"seed {seed}"
        assert (weight - torch.tensor([[1.0, -1.0]])).abs().max() < 0.11, f"seed {seed}"


@each_algorithm
def test_c6_two_input_channels(algorithm: str) -> None:
    assert_is(ours.conv2d(X2, K2[None], algorithm=algorithm)[0], [[56, 72], [104, 120]], algorithm)


@each_algorithm
def test_c7_three_output_channels(algorithm: str) -> None:
    assert K3.shape == (3, 2, 2, 2)
    expected = [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]
    assert_is(ours.conv2d(X2, K3, algorithm=algorithm), expected, algorithm)


@each_algorithm
def test_c8_a_1x1_convolution_is_a_matrix_product_over_channels(algorithm: str) -> None:
    image, kernel = torch.randn(3, 3, 3).double(), torch.randn(2, 3, 1, 1).double()
    product = (kernel.view(2, 3) @ image.view(3, 9)).view(2, 3, 3)
    assert (ours.conv2d(image, kernel, algorithm=algorithm) - product).abs().sum() < 1e-6


@each_algorithm
@pytest.mark.parametrize(
    ("kernel_size", "padding", "stride", "size"),
    [((3, 3), 1, 1, (8, 8)), ((5, 3), (2, 1), 1, (8, 8)), ((3, 3), 1, 2, (4, 4)), ((3, 5), (0, 1), (3, 4), (2, 2))],
    ids=str,
)
def test_c9_output_shape(algorithm: str, kernel_size: Any, padding: Any, stride: Any, size: tuple[int, int]) -> None:
    layer = Conv2d(1, 1, kernel_size, padding=padding, stride=stride, algorithm=algorithm)
    assert layer(torch.rand(1, 1, 8, 8)).shape == (1, 1, *size)


@each_algorithm
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_c10_each_algorithm_equals_the_builtin_convolution(algorithm: str, stride: int, padding: int) -> None:
    image, kernel = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    expected = F.conv2d(image, kernel, stride=stride, padding=padding)
    assert_close(ours.conv2d(image, kernel, stride=stride, padding=padding, algorithm=algorithm), expected, 1e-6)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_c10_the_unrolled_matrices_give_it_by_hand(stride: int, padding: int) -> None:
    image, kernel = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    expected = F.conv2d(image, kernel, stride=stride, padding=padding).flatten()
    columns = ours.unfold(image, 3, stride=stride, padding=padding)[0]
    assert_close(kernel.view(1, 9) @ columns, expected[None], 1e-6)
    padded = F.pad(image, (padding,) * 4)
    matrix = kernel_matrix(kernel, (padded.shape[2], padded.shape[3]), (stride, stride)).to_dense()
    assert_close(matrix @ padded.flatten(), expected, 1e-6)


def test_c10_the_kernel_matrix_of_3x3_over_4x4_is_4x16() -> None:
    matrix = kernel_matrix(torch.arange(1.0, 10.0).view(1, 1, 3, 3), (4, 4)).to_dense()
    assert matrix.shape == (4, 16)
    first = [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0]
    for row, shift in enumerate((0, 1, 4, 5)):
        assert_is(matrix[row], torch.tensor(first).roll(shift))


@each_algorithm
def test_c11_transposed_convolution(algorithm: str) -> None:
    kernel, output = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 2, 2)
    expected = F.conv_transpose2d(output, kernel)
    assert_close((kernel_matrix(kernel, (4, 4)).to_dense().T @ output.flatten()).view(1, 1, 4, 4), expected, 1e-6)
    assert_close(ours.conv_transpose2d(output, kernel, algorithm=algorithm), expected, 1e-6)


@each_algorithm
def test_c12_batch_channels_bias_padding_and_stride(algorithm: str) -> None:
    arguments = (torch.ones(2, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.ones(3))
    expected = F.conv2d(*arguments, padding=1, stride=2)
    assert_is(ours.conv2d(*arguments, padding=1, stride=2, algorithm=algorithm), expected, algorithm)


@each_algorithm
def test_c13_groups_and_dilation(algorithm: str) -> None:
    images, weight = torch.randn(2, 2, 7, 7), torch.randn(4, 1, 3, 3)
    expected = F.conv2d(images, weight, groups=2, dilation=2, stride=2, padding=1)
    value = ours.conv2d(images, weight, groups=2, dilation=2, stride=2, padding=1, algorithm=algorithm)
    assert_close(value, expected, 1e-6)
    with pytest.raises(RuntimeError, match=r"2 channels .* groups=2, got 3"):
        ours.conv2d(torch.randn(2, 3, 7, 7), weight, groups=2, algorithm=algorithm)


def test_c14_pooling_with_stride_1() -> None:
    largest, average = [[4, 5], [7, 8]], [[2, 3], [5, 6]]
    assert_is(ours.pool2d(X, 2, "max"), largest)
    assert_is(ours.pool2d(X, (2, 2), "avg"), average)
    assert_is(ours.max_pool2d(X[None], 2, stride=1)[0], largest)
    assert_is(ours.avg_pool2d(X[None], 2, stride=1)[0], average)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "expected"),
    [
        (3, None, 0, [[10]]),
        (3, 2, 1, [[5, 7], [13, 15]]),
        ((2, 3), (2, 3), (0, 1), [[5, 7], [13, 15]]),
        ((2, 3), (2, 3), (1, 1), [[1, 3], [9, 11], [13, 15]]),
    ],
    ids=str,
)
def test_c15_max_pooling_with_stride_and_padding(kernel_size: Any, stride: Any, padding: Any, expected: object) -> None:
    assert_is(ours.max_pool2d(X16, kernel_size, stride, padding)[0, 0], expected)


def test_c16_pooling_works_channel_by_channel() -> None:
    largest = ours.max_pool2d(torch.cat([X16, X16 + 1], dim=1), 3, stride=2, padding=1)
    assert_is(largest[0], [[[5, 7], [13, 15]], [[6, 8], [14, 16]]])


@each_algorithm
def test_c17_receptive_field_of_two_stacked_2x2_convolutions(algorithm: str) -> None:
    net = nn.Sequential(Conv2d(1, 1, 2, algorithm=algorithm), Conv2d(1, 1, 2, algorithm=algorithm))
    image = torch.rand(1, 1, 7, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[0, 0, 2, 2], image)
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(gradient[0, 0].abs() > 1e-7, expected)


@each_algorithm
def test_c18_a_layer_from_scratch_is_differentiable(algorithm: str) -> None:
    mine, theirs = Conv2d(2, 3, 3, algorithm=algorithm), nn.Conv2d(2, 3, 3)
    theirs.load_state_dict(mine.state_dict())
    images = torch.randn(2, 2, 6, 6)
    for layer in (mine, theirs):
        layer(images).square().sum().backward()
    for name in ("weight", "bias"):
        assert_close(getattr(mine, name).grad, getattr(theirs, name).grad, 1e-5)
