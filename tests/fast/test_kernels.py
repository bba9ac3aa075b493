"""The compiled functions: how images lie in memory, and what is refused."""

import pytest
import torch
from torch.nn import functional as F

from lenet.fast.autograd import ConvBlock, Unpack, pack
from lenet.fast.kernels import call, empty

pytestmark = pytest.mark.compiled

FIRST, SECOND, RELU_MAXIMUM = (2, 1, 0), (0, 1, 0), (2, 2, 1)
"""Padding, activation and pooling."""
IMAGES, WEIGHT, BIAS = torch.rand(5, 1, 28, 28), torch.rand(6, 1, 5, 5), torch.rand(6)


@pytest.mark.parametrize("count", [0, 1, 5, 16, 21])
def test_what_is_packed_is_unpacked(width: int, count: int) -> None:
    images = torch.rand(count, 2, 3)
    groups = pack(images)
    assert groups.shape == (-(-count // width), 2, 3, width)
    assert torch.equal(Unpack.apply(groups, count), images)
    assert groups.sum().item() == pytest.approx(images.sum().item())  # the rest is zeros


def test_bytes_become_what_pytorch_makes_of_them(width: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(49).view(16, 784)
    assert torch.equal(Unpack.apply(pack(images), 16), images.float() / 255)


def test_nan_stays_nan(width: int) -> None:
    images = IMAGES.clone()
    images[1, 0, 9, 9] = torch.nan
    pooled = Unpack.apply(ConvBlock.apply(pack(images), WEIGHT, BIAS, RELU_MAXIMUM), 5)
    expected = F.max_pool2d(F.conv2d(images, WEIGHT, BIAS, padding=2).relu(), 2)
    torch.testing.assert_close(pooled, expected, equal_nan=True)
    assert pooled[1].isnan().any()


def test_sizes_that_c_was_not_compiled_for_are_refused() -> None:
    groups, second = pack(IMAGES), (torch.rand(16, 6, 5, 5), torch.rand(16))
    mistakes = [
        (groups[:, :, 1:], WEIGHT, BIAS, FIRST),
        (groups[..., 1:], WEIGHT, BIAS, FIRST),
        (groups, WEIGHT, BIAS, SECOND),
        (groups, WEIGHT[1:], BIAS[1:], FIRST),
        (groups, WEIGHT, BIAS[1:], FIRST),
        (groups, WEIGHT[..., 1:], BIAS, FIRST),
        (groups, *second, FIRST),
        (pack(torch.rand(5, 5, 14, 14)), *second, SECOND),
    ]
    for mistake in mistakes:
        with pytest.raises(ValueError, match="sizes"):
            ConvBlock.apply(*mistake)
    with pytest.raises(ValueError, match="shape"):
        Unpack.apply(groups, 100)
    with pytest.raises(ValueError, match="sizes"):
        call("training_step", [1, 28, 28], 3, IMAGES, 0, IMAGES, 5, [WEIGHT], 0, 0, 1.0, [WEIGHT], empty(), empty())


def test_tensors_that_c_would_misread_are_refused() -> None:
    for wrong in (IMAGES.half(), IMAGES > 0, IMAGES.to("meta"), IMAGES.to_sparse()):
        with pytest.raises(ValueError, match="C cannot read"):
            pack(wrong)
    with pytest.raises(ValueError, match="C cannot read"):
        ConvBlock.apply(pack(IMAGES), WEIGHT.double(), BIAS, FIRST)
