"""The compiled blocks against PyTorch's layers in double precision, for every width of a vector register."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.fast import kernels
from lenet.fast.kernels import ACTIVATIONS, BLOCKS, POOLINGS, Kernels
from lenet.fast.kernels.compiler import OPTIONS, SOURCES

pytestmark = pytest.mark.compiled

Kind = tuple[int, str, str]
"""Which of the blocks, its activation and its pooling."""

KINDS: list[Kind] = list(itertools.product(BLOCKS, ACTIVATIONS, POOLINGS))


@pytest.fixture(scope="session", params=[4, 8, 16], ids=lambda lanes: f"{lanes} lanes")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels for registers of three widths; those that this machine has not, the compiler makes of others."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    options = [*OPTIONS, f"-DLANES={request.param}", "-Wno-psabi"]
    if request.param != kernels.load().lanes:
        options.append("-O1")  # to optimise what the machine cannot do takes long
    subprocess.run(["gcc", str(SOURCES / "kernels.c"), *options, "-o", str(library)], check=True)  # noqa: S607
    return Kernels(ctypes.CDLL(str(library)))


def drawn(number: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, a weight and a bias."""
    inputs, channels, size, _ = BLOCKS[number]
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, inputs, size, size, generator=generator)
    weight, bias = torch.randn(channels, inputs, 5, 5, generator=generator), torch.randn(channels, generator=generator)
    return images, weight / (5 * inputs**0.5), bias


def by_layers(kind: Kind, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    activation: dict[str, Any] = {"none": lambda x: x, "sigmoid": torch.sigmoid, "relu": torch.relu}
    pooling: dict[str, Any] = {"average": F.avg_pool2d, "maximum": F.max_pool2d}
    values = F.conv2d(images, weight, bias, padding=BLOCKS[kind[0]].padding)
    result: Tensor = pooling[kind[2]](activation[kind[1]](values), 2)
    return result


def unpacked(compiled: Kernels, groups: Tensor, count: int) -> Tensor:
    return compiled.unpack(groups)[:count]


def compute(
    compiled: Kernels, kind: Kind, images: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor
) -> dict[str, Tensor | None]:
    """The pooled outputs, and the gradients of images, weight and bias."""
    values = compiled.pack(images)
    outputs, pooled = compiled.block_forward(*kind, values, weight, bias)
    inner, of_weight, of_bias = compiled.block_backward(*kind, weight, values, outputs, pooled, compiled.pack(gradient))
    return {
        "pooled": unpacked(compiled, pooled, len(images)),
        "images": None if inner is None else unpacked(compiled, inner, len(images)),
        "weight": of_weight,
        "bias": of_bias,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_block_is_what_its_layers_are(compiled: Kernels, kind: Kind, subtests: pytest.Subtests) -> None:
    for count in (1, 7, 16, 33):
        parts = drawn(kind[0], count)
        exact = [part.double().requires_grad_() for part in parts]
        pooled = by_layers(kind, *exact)
        gradient = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
        expected = [pooled, *torch.autograd.grad(pooled, exact, gradient.double())]
        for (name, ours), theirs in zip(compute(compiled, kind, *parts, gradient).items(), expected, strict=True):
            with subtests.test(images=count, of=name):
                if name == "images" and kind[0] == 1:
                    assert ours is None
                    continue
                assert ours is not None
                assert (ours.flatten() - theirs.flatten()).abs().max() < 1e-5 * theirs.abs().max()


SIZES = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
"""Of the weights of a LeNet."""


def train(
    compiled: Kernels, activation: str, pooling: str, images: Tensor, labels: Tensor, scale: float, *parts: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A step with weights and biases; the gradients begin as something that must not be left of them."""
    gradients = [torch.full_like(part, torch.nan) for part in parts]
    loss, logits = compiled.training_step(
        activation, pooling, images, labels, scale, parts[:5], parts[5:], gradients[:5], gradients[5:]
    )
    return loss, logits, gradients


def lenet_parts() -> list[Tensor]:
    """Weights, then biases."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator) / (size[1:].numel() ** 0.5) for size in map(torch.Size, SIZES)]
    return weights + [torch.randn(len(weight), generator=generator) for weight in weights]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 7, 64, 600])  # 600 images are more groups than are laid side by side at a time
def test_a_training_step_is_what_its_layers_are(compiled: Kernels, activation: str, pooling: str, count: int) -> None:
    torch.manual_seed(count)
    parts = lenet_parts()
    images, labels = torch.rand(count, 1, 28, 28), torch.randint(10, (count,))
    exact = [part.double().requires_grad_() for part in parts]
    values = images.double()
    for number in (1, 2):
        values = by_layers((number, activation, pooling), values, exact[number - 1], exact[number + 4])
    values = values.flatten(1)
    function: dict[str, Any] = {"none": lambda x: x, "sigmoid": torch.sigmoid, "relu": torch.relu}
    for layer in (2, 3, 4):
        values = F.linear(values, exact[layer], exact[layer + 5])
        values = function[activation](values) if layer < 4 else values
    expected_loss = F.cross_entropy(values, labels, reduction="sum")
    expected = torch.autograd.grad(expected_loss / 300, exact)

    loss, logits, gradients = train(compiled, activation, pooling, images, labels, 1 / 300, *parts)
    torch.testing.assert_close(logits.double(), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    # Values that differ in double precision may be equal in single, and a maximum's gradient then goes to the first.
    tolerance = 1e-3 if pooling == "maximum" else 2e-5
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


def test_a_training_step_without_images_has_no_gradient(compiled: Kernels) -> None:
    images, labels = torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.int64)
    loss, logits, gradients = train(compiled, "sigmoid", "average", images, labels, 1.0, *lenet_parts())
    assert loss == 0
    assert logits.shape == (0, 10)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_a_label_that_is_none_is_refused(compiled: Kernels, label: int) -> None:
    images, labels = torch.rand(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    labels[17] = label
    with pytest.raises(IndexError, match="a label is not one of 0 to 9"):
        train(compiled, "sigmoid", "average", images, labels, 1.0, *lenet_parts())


def test_weights_that_are_no_numbers_show_in_the_loss(compiled: Kernels) -> None:
    images, labels = torch.rand(20, 1, 28, 28), torch.zeros(20, dtype=torch.int64)
    for part in range(10):
        parts = lenet_parts()
        parts[part].view(-1)[-1] = torch.nan
        loss, logits, _ = train(compiled, "relu", "maximum", images, labels, 1.0, *parts)
        assert loss.isnan()
        assert logits.isnan().any(dim=1).all()


@pytest.mark.usefixtures("two_threads")
def test_a_training_step_with_the_same_number_of_threads_gives_the_same_bits(compiled: Kernels) -> None:
    images, labels = torch.rand(100, 1, 28, 28), torch.randint(10, (100,))
    first, again = (train(compiled, "sigmoid", "average", images, labels, 0.01, *lenet_parts())[-1] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    torch.set_num_threads(3)
    third = train(compiled, "sigmoid", "average", images, labels, 0.01, *lenet_parts())[-1]
    for one, other in zip(first, third, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_sigmoid_to_four_units_in_the_last_place(compiled: Kernels) -> None:
    values = torch.cat([torch.linspace(-86, 86, 40_000), torch.linspace(-1, 1, 20_000), torch.randn(2720) / 1e4])
    # A kernel that looks at one pixel hands the images over as they are.
    weight = torch.zeros(6, 1, 5, 5)
    weight[0, 0, 2, 2] = 1
    outputs, _ = compiled.block_forward(
        1, "sigmoid", "average", compiled.pack(values.view(80, 1, 28, 28)), weight, torch.zeros(6)
    )
    ours = unpacked(compiled, outputs[:, :1], 80).flatten()
    exact = torch.sigmoid(values.double())
    spacing = torch.nextafter(exact.float(), torch.tensor(2.0)) - exact.float()
    assert ((ours - exact).abs() / spacing).max() <= 4


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_none(compiled: Kernels, activation: str, pooling: str) -> None:
    kind, images = (1, activation, pooling), torch.zeros(3, 1, 28, 28)
    images[1, 0, 9, 9] = torch.nan
    weight, bias = torch.ones(6, 1, 5, 5), torch.zeros(6)
    _, pooled = compiled.block_forward(*kind, compiled.pack(images), weight, bias)
    spoilt = unpacked(compiled, pooled, 3).isnan().view(3, 6, 14, 14)
    assert torch.equal(spoilt, by_layers(kind, images, weight, bias).isnan())
    assert spoilt[1].any()


def test_huge_numbers_end_where_sigmoid_does(compiled: Kernels) -> None:
    images, weight = torch.full((1, 1, 28, 28), 1e30), torch.zeros(6, 1, 5, 5)
    weight[:, 0, 2, 2] = torch.tensor([1.0, -1, 2, -2, 3, -3])
    kind = (1, "sigmoid", "maximum")
    _, pooled = compiled.block_forward(*kind, compiled.pack(images), weight, torch.zeros(6))
    ours, expected = unpacked(compiled, pooled, 1).view(6, 14, 14), by_layers(kind, images, weight, torch.zeros(6))[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-37)


def test_of_equal_values_in_a_window_the_first_gets_the_gradient(compiled: Kernels) -> None:
    kind, images = (2, "relu", "maximum"), torch.ones(3, 6, 14, 14)
    weight, bias, gradient = torch.ones(16, 6, 5, 5), torch.zeros(16), torch.ones(3, 16, 5, 5)
    inner = compute(compiled, kind, images, weight, bias, gradient)["images"]
    wanted = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_layers(kind, wanted, weight, bias), wanted, gradient)
    assert inner is not None
    torch.testing.assert_close(inner.view_as(expected), expected)


def test_bytes_become_what_pytorch_makes_of_them(compiled: Kernels) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(49).view(16, 784)
    assert torch.equal(unpacked(compiled, compiled.pack(images), 16), images.float() / 255)


@pytest.mark.parametrize("count", [0, 1, 5, 16, 21])
def test_what_is_packed_is_unpacked(compiled: Kernels, count: int) -> None:
    images = torch.rand(count, 2, 3)
    groups = compiled.pack(images)
    assert groups.shape == (-(-count // compiled.lanes), 2, 3, compiled.lanes)
    assert torch.equal(unpacked(compiled, groups, count).view_as(images), images)
    assert groups.sum().item() == pytest.approx(images.sum().item())  # the rest is zeros


@pytest.mark.parametrize("number", BLOCKS)
def test_no_images_have_no_gradient(compiled: Kernels, number: int) -> None:
    channels, size = BLOCKS[number].channels, BLOCKS[number].pooled_size
    computed = compute(
        compiled, (number, "sigmoid", "average"), *drawn(number, 0), torch.empty(0, channels, size, size)
    )
    assert computed["pooled"] is not None
    assert len(computed["pooled"]) == 0
    for name in ("weight", "bias"):
        gradient = computed[name]
        assert gradient is not None
        assert not gradient.any()


@pytest.mark.usefixtures("two_threads")
def test_the_same_number_of_threads_gives_the_same_bits(compiled: Kernels) -> None:
    kind = (2, "sigmoid", "average")
    parts, gradient = drawn(2, 100), torch.randn(100, 16, 5, 5)
    first, again = (compute(compiled, kind, *parts, gradient) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first.values(), again.values(), strict=True))  # type: ignore[arg-type]
    torch.set_num_threads(3)
    for one, other in zip(first.values(), compute(compiled, kind, *parts, gradient).values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_memory_that_does_not_begin_where_a_register_can_load_it(compiled: Kernels) -> None:
    kind, (images, weight, bias) = (2, "sigmoid", "average"), drawn(2, 5)
    values = compiled.pack(images)
    shifted = torch.empty(values.numel() + 1)[1:].view_as(values).copy_(values)
    pairs = zip(*(compiled.block_forward(*kind, each, weight, bias) for each in (shifted, values)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_whatever_is_the_default_type_of_numbers(compiled: Kernels) -> None:
    kind, parts = (2, "relu", "average"), drawn(2, 5)
    usual = compute(compiled, kind, *parts, torch.ones(5, 16, 5, 5))
    torch.set_default_dtype(torch.float64)
    try:
        again = compute(compiled, kind, *parts, torch.ones(5, 16, 5, 5, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(usual.values(), again.values(), strict=True))  # type: ignore[arg-type]


def test_tensors_that_c_would_misread_are_refused(compiled: Kernels, subtests: pytest.Subtests) -> None:
    images, weight, bias = drawn(1, 5)
    groups, labels = compiled.pack(images), torch.zeros(5, dtype=torch.int64)
    results = compiled.block_forward(1, "relu", "average", groups, weight, bias)
    meta = torch.device("meta")
    mistakes: dict[str, Callable[[], object]] = {
        "images of half precision": lambda: compiled.pack(images.half()),
        "images elsewhere": lambda: compiled.pack(images.to(meta)),
        "groups of another width": lambda: compiled.unpack(groups[..., 1:]),
        "small images": lambda: compiled.block_forward(1, "relu", "average", groups[:, :, 1:], weight, bias),
        "weight in double precision": lambda: compiled.block_forward(
            1, "relu", "average", groups, weight.double(), bias
        ),
        "weight of the other block": lambda: compiled.block_forward(2, "relu", "average", groups, weight, bias),
        "gradient of another shape": lambda: compiled.block_backward(
            1,
            "relu",
            "average",
            weight,
            groups,
            *results,
            groups,
        ),
        "bits": lambda: train(compiled, "relu", "average", images > 0, labels, 1.0, *lenet_parts()),
        "several labels": lambda: train(
            compiled, "relu", "average", images, labels[:, None].expand(5, 2), 1.0, *lenet_parts()
        ),
        "fewer labels": lambda: train(compiled, "relu", "average", images, labels[1:], 1.0, *lenet_parts()),
        "labels in float": lambda: train(compiled, "relu", "average", images, labels.float(), 1.0, *lenet_parts()),
    }
    for name, mistake in mistakes.items():
        with subtests.test(name), pytest.raises(ValueError, match="is needed"):
            mistake()
