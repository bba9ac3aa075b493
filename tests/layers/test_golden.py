"""The rows of the table of golden facts on convolution and pooling, C1 to C18, for each algorithm they apply to."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.layers import Conv2d
from lenet.layers import functional as ours
from lenet.layers.im2col import unrolled
from lenet.layers.kernel_matrix import kernel_matrix
from tests.layers.cases import assert_agree, assert_close, each_algorithm

X = torch.arange(9.0).view(3, 3)
K = torch.arange(4.0).view(2, 2)
X2 = torch.stack([X, X + 1])
K2 = torch.stack([K, K + 1])
K3 = torch.stack([K2, K2 + 1, K2 + 2])
X16 = torch.arange(16.0).view(1, 1, 4, 4)

EDGES = torch.ones(6, 8)
EDGES[:, 2:6] = 0
EDGE_KERNEL, DIAGONAL_KERNEL = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
FOUND = torch.tensor([[0.0, 1, 0, 0, 0, -1, 0]] * 6)


def assert_is(values: Tensor, expected: object, algorithm: str = "") -> None:
    """Exactly so; but a Fourier transform rounds."""
    wanted = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4 if algorithm == "fft" else 0)


def plane(image: Tensor, kernel: Tensor, algorithm: str) -> Tensor:
    """One image and one kernel, by the two-dimensional definition or by an algorithm."""
    if algorithm == "definition":
        return ours.cross_correlation(image, kernel)
    return ours.conv2d(image[None], kernel[None, None], algorithm=algorithm)[0]


each_way = pytest.mark.parametrize("algorithm", ["definition", *ours.ALGORITHMS])

PLANES: dict[str, tuple[Tensor, Tensor, object]] = {
    "C1 cross-correlation": (X, K, [[19, 25], [37, 43]]),
    "C2 true convolution": (X, K.flip(0, 1), [[5, 11], [23, 29]]),
    "C3 vertical edges": (EDGES, EDGE_KERNEL, FOUND),
    "C3 no horizontal edges": (EDGES.T, EDGE_KERNEL, torch.zeros(8, 5)),
    "C4 horizontal edges": (EDGES.T, EDGE_KERNEL.T, FOUND.T),
    "C4 along a diagonal edge": (torch.ones(6, 6).triu(), DIAGONAL_KERNEL, torch.zeros(5, 5)),
    "C4 across one": (torch.ones(6, 6).triu().flip(1), DIAGONAL_KERNEL, torch.ones(5, 5).triu(-1).tril().flip(1)),
}


@each_way
@pytest.mark.parametrize("fact", PLANES)
def test_one_image_and_one_kernel(fact: str, algorithm: str) -> None:
    image, kernel, expected = PLANES[fact]
    assert_is(plane(image, kernel, algorithm), expected, algorithm)


def test_c2_true_convolution_by_its_definition() -> None:
    assert_is(ours.convolution(X, K), [[5, 11], [23, 29]])


@each_way
@pytest.mark.parametrize(("learning_rate", "least", "most"), [(2e-2, 0.011, 0.24), (3e-2, 0.001, 0.54)])
def test_c5_a_kernel_is_learned(algorithm: str, learning_rate: float, least: float, most: float) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        weight = nn.Conv2d(1, 1, (1, 2), bias=False).weight.detach()[0, 0].requires_grad_()
        for _ in range(10):
            loss = ((plane(EDGES, weight, algorithm) - FOUND) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= learning_rate * gradient
        assert least <= loss.item() <= most, f"seed {seed}"
        assert (weight - EDGE_KERNEL).abs().max() < 0.11, f"seed {seed}"


@each_algorithm
def test_c6_c7_several_input_and_output_channels(algorithm: str) -> None:
    expected = [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]
    assert_is(ours.conv2d(X2, K3, algorithm=algorithm), expected, algorithm)
    assert_is(ours.conv2d(X2, K3[:1], algorithm=algorithm), expected[:1], algorithm)


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


BUILTIN: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "C10": ([(1, 1, 4, 4), (1, 1, 3, 3)], {}),
    "C10 padding": ([(1, 1, 4, 4), (1, 1, 3, 3)], {"padding": 1}),
    "C10 stride": ([(1, 1, 4, 4), (1, 1, 3, 3)], {"stride": 2}),
    "C10 padding and stride": ([(1, 1, 4, 4), (1, 1, 3, 3)], {"padding": 1, "stride": 2}),
    "C12 batch, channels and bias": ([(2, 2, 5, 5), (3, 2, 3, 3), (3,)], {"padding": 1, "stride": 2}),
    "C13 groups and dilation": ([(2, 2, 7, 7), (4, 1, 3, 3)], {"groups": 2, "dilation": 2, "stride": 2, "padding": 1}),
    "C18 gradients": ([(2, 2, 6, 6), (3, 2, 3, 3), (3,)], {}),
}


@each_algorithm
@pytest.mark.parametrize("fact", BUILTIN)
def test_values_and_gradients_of_the_builtin_convolution(fact: str, algorithm: str) -> None:
    shapes, options = BUILTIN[fact]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    assert_agree(partial(ours.conv2d, **options, algorithm=algorithm), partial(F.conv2d, **options), tensors, 1e-12)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_c10_the_unrolled_matrices_give_it_by_hand(stride: int, padding: int) -> None:
    image, kernel = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    expected = F.conv2d(image, kernel, stride=stride, padding=padding).flatten()
    padded = F.pad(image, (padding,) * 4)
    (columns,) = unrolled(padded, (3, 3), (stride, stride), (1, 1))
    assert_close(kernel.view(1, 9) @ columns, expected[None], 1e-6)
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


def test_c14_pooling_with_stride_1() -> None:
    largest, average = [[4, 5], [7, 8]], [[2, 3], [5, 6]]
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
def test_c15_c16_max_pooling_channel_by_channel(kernel_size: Any, stride: Any, padding: Any, expected: object) -> None:
    largest = ours.max_pool2d(torch.cat([X16, X16 + 1], dim=1), kernel_size, stride, padding)
    assert_is(largest[0, 0], expected)
    assert_is(largest[0, 1] - 1, expected)


@each_algorithm
def test_c17_receptive_field_of_two_stacked_2x2_convolutions(algorithm: str) -> None:
    net = nn.Sequential(Conv2d(1, 1, 2, algorithm=algorithm), Conv2d(1, 1, 2, algorithm=algorithm))
    image = torch.rand(1, 1, 7, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[0, 0, 2, 2], image)
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(gradient[0, 0].abs() > 1e-7, expected)
