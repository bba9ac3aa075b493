"""The step that trains by the CUDA kernel, emulated on the CPU, beside the plain one."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lenet import LeNet, fast
from lenet.data import Block, Images
from lenet.fast.cuda.compiler import Variant
from lenet.training.comparison import compare
from lenet.training.fast_steps import KernelStep
from lenet.training.step import PlainStep
from tests.fast.cuda.conftest import EmulatedKernel, Library
from tests.training.small import Alone

DRAW = torch.Generator().manual_seed(0)
IMAGES = Images(
    torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8, generator=DRAW), torch.randint(10, (9,), generator=DRAW)
)
BLOCK = Block(IMAGES, torch.arange(9), ((1, 1), (4, 4), (4, 4)))


@pytest.fixture
def modules(library: Library, monkeypatch: pytest.MonkeyPatch) -> tuple[Alone, Alone]:
    """Two of the same, with their optimizers."""
    variant = Variant(1, 1, False)
    kernel = partial(EmulatedKernel, library(variant), variant, blocks=2)
    emulated = partial(fast.CudaTraining, load=lambda kind, *_: kernel(kind=kind))
    monkeypatch.setattr(fast, "CudaTraining", emulated)

    def new() -> Alone:
        torch.manual_seed(0)
        module = Alone(LeNet(activation=nn.ReLU, pool=nn.MaxPool2d))
        module.optimizer = AdamW(module.parameters(), lr=0.01)
        return module

    return new(), new()


def test_a_block_is_trained_as_by_the_plain_step(modules: tuple[Alone, Alone]) -> None:
    ours, plain = modules
    step = KernelStep(ours, ours.optimizer, batch_size=4)
    assert compare(PlainStep(ours), step, IMAGES.images[:4], IMAGES.labels[:4]) is None
    mine, its = step.train(BLOCK, ours.optimizer, None), PlainStep(plain).train(BLOCK, plain.optimizer, None)
    torch.testing.assert_close(mine.losses, its.losses)
    assert (int(mine.correct), mine.lr) == (int(its.correct), its.lr)
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-5)
    assert step.is_current()


def test_another_loss_is_noticed(modules: tuple[Alone, Alone]) -> None:
    module, _ = modules
    module.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    step = KernelStep(module, module.optimizer, batch_size=4)
    assert "loss" in str(compare(PlainStep(module), step, IMAGES.images[:4], IMAGES.labels[:4]))
    module.loss.label_smoothing = 0.0
    assert not step.is_current()
