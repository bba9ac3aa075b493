"""Steps that are recorded once and repeated; what a CUDA graph repeats is on a CPU the recorded function itself."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torchvision.transforms.v2 import RandomHorizontalFlip

from lenet import LeNet
from lenet.data import Block, Images
from lenet.data.augment import Augment
from lenet.fast import graph
from lenet.training.choice import checked
from lenet.training.fast_steps import RecordedStep
from lenet.training.optimizers import Muon
from lenet.training.step import PlainStep
from tests.training.small import Alone

generator = torch.Generator().manual_seed(0)
DATA = Images(
    torch.randint(256, (300, 1, 28, 28), dtype=torch.uint8, generator=generator),
    torch.randint(10, (300,), generator=generator),
)
BLOCKS = [((4, 4), *((16, 16),) * 5), ((16, 16),) * 6, ((4, 4), *((16, 16),) * 70)]
"""An epoch begins with the batch that is left over; and a block may have more steps than there is room for."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What was recorded; it is repeated by calling it."""
    steps: list[Callable[[], None]] = []

    def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        steps.append(step)
        return step

    monkeypatch.setattr(graph, "record", record)
    return steps


def blocks() -> list[Block]:
    order, drawn = [], torch.Generator().manual_seed(1)
    for sizes in BLOCKS:
        count = sum(size for size, _ in sizes)
        order.append(Block(DATA, torch.randint(300, (count,), generator=drawn), sizes))
    return order


def trained(
    kind: type[PlainStep], optimizer: Callable[..., Optimizer], schedule: bool = True, **settings: Any
) -> tuple[Tensor, Tensor, Alone]:
    """The losses and weights after all blocks."""
    torch.manual_seed(0)
    module = Alone(LeNet(**settings))
    module.optimizer = optimizer(module.parameters())
    scheduler = LambdaLR(module.optimizer, lambda step: 1 / (1 + step / 64)) if schedule else None
    step = kind(module)
    taken = [step.train(block, module.optimizer, scheduler) for block in blocks()]
    assert step.is_current()
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert sum(int(each.correct) for each in taken) > 0
    return torch.cat([each.losses for each in taken]), weights, module


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=0.5, momentum=0.5, fused=True),
    "Adam": partial(Adam, lr=2**-9, fused=True),
    "AdamW": partial(AdamW, lr=2**-9, weight_decay=0.1, fused=True),
    "Muon": partial(Muon, lr=2**-9, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("settings", [{}, {"activation": nn.ReLU, "norm": nn.BatchNorm2d, "dropout": 0.2}], ids=repr)
def test_recorded_steps_are_the_plain_ones(
    recorded: list[Callable[[], None]], name: str, settings: dict[str, Any]
) -> None:
    # The gradient of a bias before a normalisation is rounding alone, which Adam makes large: rates are exact there.
    how = {"optimizer": OPTIMIZERS[name], "schedule": "norm" not in settings, **settings}
    losses, weights, module = trained(RecordedStep, **how)
    its_losses, its_weights, plain = trained(PlainStep, **how)
    torch.testing.assert_close(losses, its_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, its_weights, rtol=1e-4, atol=1e-6)
    for (key, mine), its in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5, msg=key)
    groups = (module.optimizer.state_dict()["param_groups"], plain.optimizer.state_dict()["param_groups"])
    assert groups[0] == groups[1]  # plain numbers, as a checkpoint should have them
    assert len(recorded) == 1  # batches of 4 were too few


def test_a_size_is_recorded_after_its_first_steps(recorded: list[Callable[[], None]]) -> None:
    calls: list[int] = []

    def take(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(recorded))
        return images.float().mean(), labels.sum()

    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.1, fused=True)
    steps = graph.RecordedSteps(take, optimizer, *DATA, 2)
    losses, sums = steps(torch.arange(10), [[0.1]] * 5)
    assert calls == [0, 0, 0, 1, 1]
    assert torch.equal(losses, torch.stack([DATA.images[i : i + 2].float().mean() for i in range(0, 10, 2)]))
    assert torch.equal(sums, DATA.labels[:10].view(5, 2).sum(1).float())


def test_what_cannot_be_recorded_is_computed_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graph, "record", refuse)
    losses, *_ = trained(RecordedStep, OPTIMIZERS["SGD"])
    expected, *_ = trained(PlainStep, OPTIMIZERS["SGD"])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert [line for line in caplog.messages if "not permitted" in line and "more" not in line] == caplog.messages
    assert len(caplog.messages) == 1


EDITS: dict[str, Callable[[Alone], object]] = {
    "mode": lambda module: module.net.eval(),
    "rate of dropout": lambda module: setattr(module.net.drop1, "p", 0.5),
    "frozen weight": lambda module: next(module.net.parameters()).requires_grad_(False),
    "weight": lambda module: setattr(module.net.conv1, "weight", nn.Parameter(torch.zeros(6, 1, 5, 5))),
    "layer": lambda module: setattr(module.net, "act1", nn.Tanh()),
    "hook": lambda module: module.net.register_forward_hook(print),
    "loss": lambda module: setattr(module.loss, "label_smoothing", 0.1),
    "momentum": lambda module: module.optimizer.param_groups[0].update(momentum=0.25),
    "augmentation": lambda module: setattr(module, "augment", Augment(flip=0.5)),
    "optimizer's state": lambda module: module.optimizer.load_state_dict(copy.deepcopy(module.optimizer.state_dict())),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_recorded_does_not_hold_after_an_edit(recorded: list[Callable[[], None]], edit: str) -> None:
    torch.manual_seed(0)
    module = Alone(LeNet(dropout=0.2))
    module.optimizer = SGD(module.parameters(), lr=0.5, momentum=0.5, fused=True)
    step = RecordedStep(module)
    step.train(blocks()[0], module.optimizer, None)
    module.optimizer.param_groups[0]["lr"] = 0.25
    assert step.is_current()  # a learning rate is no edit
    EDITS[edit](module)
    assert not step.is_current()


class OneDevice:
    world_size = 1


@pytest.mark.parametrize("fits", [True, False])
def test_a_schedule_that_changes_more_than_rates_is_not_recorded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    monkeypatch.setattr(Alone, "trainer", OneDevice())
    module = Alone(LeNet(dropout=0.2))
    module.optimizer = SGD(module.parameters(), lr=0.5, momentum=0.5, fused=True)
    scheduler = OneCycleLR(module.optimizer, 0.5, total_steps=9, cycle_momentum=not fits)
    before = copy.deepcopy((scheduler.state_dict(), module.optimizer.state_dict()))
    step = checked(RecordedStep(module), blocks()[0], module.optimizer, scheduler)
    assert type(step) is (RecordedStep if fits else PlainStep)
    assert (scheduler.state_dict(), module.optimizer.state_dict()) == before
    assert [line for line in caplog.messages if "OneCycleLR" in line] == caplog.messages
    assert len(caplog.messages) == (not fits)


def test_an_augmentation_that_may_draw_elsewhere_is_not_recorded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Alone, "trainer", OneDevice())
    for augment, kind in ((RandomHorizontalFlip(), PlainStep), (Augment(flip=0.5), RecordedStep)):
        module = Alone(LeNet(), augment=augment)
        module.optimizer = SGD(module.parameters(), lr=0.5, fused=True)
        assert type(checked(RecordedStep(module), blocks()[0], module.optimizer, None)) is kind
    assert "RandomHorizontalFlip" in caplog.text


def test_an_optimizer_that_counts_in_python_is_not_recorded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Alone, "trainer", OneDevice())
    module = Alone(LeNet(dropout=0.2))
    module.optimizer = Adagrad(module.parameters(), lr_decay=0.1)
    assert type(checked(RecordedStep(module), blocks()[0], module.optimizer, None)) is PlainStep
    assert "Adagrad" in caplog.text
