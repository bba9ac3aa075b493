"""The compiled blocks against PyTorch's layers in double precision, for every width of a vector register."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenet import kernels
from lenet.kernels import ACTIVATIONS, POOLINGS, Block, Kernels, UnavailableError

SHAPES = {1: (1, 6, 28, 2), 2: (6, 16, 14, 0)}
"""Of each block: input channels, output channels, height and width, padding."""

BLOCKS = [Block(*kind) for kind in itertools.product(SHAPES, ACTIVATIONS, POOLINGS)]


@pytest.fixture(scope="session", params=[4, 8, 16], ids=lambda lanes: f"{lanes} lanes")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels with registers of another width, which the compiler makes of those that there are."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    options = [*kernels.OPTIONS, f"-DLANES={request.param}", "-Wno-psabi"]
    subprocess.run(["gcc", *options, str(kernels.SOURCE), "-o", str(library)], check=True)  # noqa: S607
    return Kernels(library)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(block: Block, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, a weight and a bias."""
    inputs, channels, size, _ = SHAPES[block.number]
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, inputs, size, size, generator=generator)
    weight, bias = torch.randn(channels, inputs, 5, 5, generator=generator), torch.randn(channels, generator=generator)
    return images, weight / (5 * inputs**0.5), bias


def by_layers(block: Block, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    activation: dict[str, Any] = {"none": lambda x: x, "sigmoid": torch.sigmoid, "relu": torch.relu}
    pooling: dict[str, Any] = {"average": F.avg_pool2d, "maximum": F.max_pool2d}
    values = F.conv2d(images, weight, bias, padding=SHAPES[block.number][-1])
    result: Tensor = pooling[block.pooling](activation[block.activation](values), 2)
    return result


def compute(
    compiled: Kernels, block: Block, images: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor
) -> list[Tensor | None]:
    """The pooled outputs, and the gradients of images, weight and bias."""
    values = compiled.pack(images)
    outputs, pooled = compiled.forward(block, values, weight, bias)
    inner, *others = compiled.backward(block, values, weight, outputs, pooled, compiled.pack(gradient))
    unpacked = [None if each is None else compiled.unpack(each, len(images)) for each in (pooled, inner)]
    return [*unpacked, *others]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "-".join(map(str, block)))
def test_a_block_is_what_its_layers_are(compiled: Kernels, block: Block, subtests: pytest.Subtests) -> None:
    for count in (1, 7, 16, 33):
        parts = drawn(block, count)
        exact = [part.double().requires_grad_() for part in parts]
        pooled = by_layers(block, *exact)
        gradient = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
        expected = [pooled, *torch.autograd.grad(pooled, exact, gradient.double())]
        names = ("pooled", "images", "weight", "bias")
        for name, ours, theirs in zip(names, compute(compiled, block, *parts, gradient), expected, strict=True):
            with subtests.test(images=count, of=name):
                if name == "images" and block.number == 1:
                    assert ours is None
                    continue
                assert ours is not None
                assert (ours.flatten() - theirs.flatten()).abs().max() < 1e-5 * theirs.abs().max()


def test_sigmoid_to_four_units_in_the_last_place(compiled: Kernels) -> None:
    values = torch.cat([torch.linspace(-86, 86, 40_000), torch.linspace(-1, 1, 20_000), torch.randn(2720) / 1e4])
    # A kernel that looks at one pixel hands the images over as they are.
    weight = torch.zeros(6, 1, 5, 5)
    weight[0, 0, 2, 2] = 1
    outputs, _ = compiled.forward(
        Block(1, "sigmoid", "average"), compiled.pack(values.view(80, 1, 28, 28)), weight, torch.zeros(6)
    )
    ours = compiled.unpack(outputs[:, :1].contiguous(), 80).flatten()
    exact = torch.sigmoid(values.double())
    spacing = torch.nextafter(exact.float(), torch.tensor(2.0)) - exact.float()
    assert ((ours - exact).abs() / spacing).max() <= 4


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_none(compiled: Kernels, activation: str, pooling: str) -> None:
    block, images = Block(1, activation, pooling), torch.zeros(3, 1, 28, 28)
    images[1, 0, 9, 9] = torch.nan
    weight, bias = torch.ones(6, 1, 5, 5), torch.zeros(6)
    _, pooled = compiled.forward(block, compiled.pack(images), weight, bias)
    spoilt = compiled.unpack(pooled, 3).isnan().view(3, 6, 14, 14)
    assert torch.equal(spoilt, by_layers(block, images, weight, bias).isnan())
    assert spoilt[1].any()


def test_huge_numbers_end_where_sigmoid_does(compiled: Kernels) -> None:
    images, weight = torch.full((1, 1, 28, 28), 1e30), torch.zeros(6, 1, 5, 5)
    weight[:, 0, 2, 2] = torch.tensor([1.0, -1, 2, -2, 3, -3])
    block = Block(1, "sigmoid", "maximum")
    _, pooled = compiled.forward(block, compiled.pack(images), weight, torch.zeros(6))
    ours, expected = compiled.unpack(pooled, 1).view(6, 14, 14), by_layers(block, images, weight, torch.zeros(6))[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-37)


def test_of_equal_values_in_a_window_the_first_gets_the_gradient(compiled: Kernels) -> None:
    block, images = Block(2, "relu", "maximum"), torch.ones(3, 6, 14, 14)
    weight, bias, gradient = torch.ones(16, 6, 5, 5), torch.zeros(16), torch.ones(3, 16, 5, 5)
    _, inner, *_ = compute(compiled, block, images, weight, bias, gradient)
    wanted = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_layers(block, wanted, weight, bias), wanted, gradient)
    assert inner is not None
    torch.testing.assert_close(inner.view_as(expected), expected)


def test_bytes_become_what_pytorch_makes_of_them(compiled: Kernels) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(49).view(16, 784)
    assert torch.equal(compiled.unpack(compiled.pack(images), 16), images.float() / 255)


@pytest.mark.parametrize("count", [0, 1, 5, 16, 21])
def test_what_is_packed_is_unpacked(compiled: Kernels, count: int) -> None:
    images = torch.rand(count, 2, 3)
    groups = compiled.pack(images)
    assert groups.shape == (-(-count // compiled.lanes), 2, 3, compiled.lanes)
    assert torch.equal(compiled.unpack(groups, count).view_as(images), images)
    assert groups.sum().item() == pytest.approx(images.sum().item())  # the rest is zeros


def test_no_images_have_no_gradient(compiled: Kernels) -> None:
    for number, (inputs, channels, _, _) in SHAPES.items():
        block = Block(number, "sigmoid", "average")
        gradient = torch.empty(0, channels, block.pooled_size, block.pooled_size)
        pooled, _, weight, bias = compute(compiled, block, *drawn(block, 0), gradient)
        assert pooled is not None
        assert weight is not None
        assert bias is not None
        assert len(pooled) == 0
        assert weight.shape == (channels, inputs, 5, 5)
        assert not weight.any()
        assert not bias.any()


@pytest.mark.usefixtures("two_threads")
def test_the_same_number_of_threads_gives_the_same_bits(compiled: Kernels) -> None:
    block = Block(2, "sigmoid", "average")
    parts, gradient = drawn(block, 100), torch.randn(100, 16, 5, 5)
    first, again = (compute(compiled, block, *parts, gradient) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    torch.set_num_threads(3)
    for one, other in zip(first, compute(compiled, block, *parts, gradient), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("two_threads")
def test_memory_that_does_not_begin_where_a_register_can_load_it(compiled: Kernels) -> None:
    block = Block(2, "sigmoid", "average")
    images, weight, bias = drawn(block, 5)
    values = compiled.pack(images)
    shifted = torch.empty(values.numel() + 1)[1:].view_as(values).copy_(values)
    for one, other in zip(
        compiled.forward(block, shifted, weight, bias), compiled.forward(block, values, weight, bias), strict=True
    ):
        assert torch.equal(one, other)


class TestLoading:
    """Compiling when it is needed, and keeping what was compiled."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        monkeypatch.setattr(kernels, "CACHE", tmp_path / "cache")
        kernels.load.cache_clear()
        yield tmp_path / "cache"
        kernels.load.cache_clear()

    def test_it_is_compiled_once(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernels.load().lanes in (4, 8, 16)
        (library,) = cache.iterdir()
        kernels.load.cache_clear()
        monkeypatch.setattr(subprocess, "run", None)
        assert kernels.load().lanes in (4, 8, 16)
        assert list(cache.iterdir()) == [library]

    def test_a_change_of_the_source_is_compiled(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernels.load()
        changed = tmp_path / "kernels.c"
        changed.write_text(kernels.SOURCE.read_text() + "\n/* changed */\n")
        monkeypatch.setattr(kernels, "SOURCE", changed)
        kernels.load.cache_clear()
        kernels.load()
        assert len(list(cache.iterdir())) == 2

    def test_a_damaged_library_is_compiled_anew(self, cache: Path) -> None:
        kernels.load()
        (library,) = cache.iterdir()
        size = library.stat().st_size
        library.unlink()  # what is loaded must not change
        library.write_bytes(b"\x7fELF, but not for long")
        kernels.load.cache_clear()
        assert kernels.load().lanes in (4, 8, 16)
        assert library.stat().st_size == size

    def test_where_nothing_may_be_kept_it_is_compiled_each_time(self, cache: Path) -> None:
        cache.write_text("a file where the folder should be")
        assert kernels.load().lanes in (4, 8, 16)

    def test_without_a_compiler_it_is_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(UnavailableError, match="there is no gcc on this machine"):
            kernels.load()

    def test_a_compiler_that_fails_says_why(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = tmp_path / "kernels.c"
        broken.write_text("int lane_count(void) { return LANES }\n")
        monkeypatch.setattr(kernels, "SOURCE", broken)
        with pytest.raises(UnavailableError, match=r"gcc fails: .*kernels\.c"):
            kernels.load()
