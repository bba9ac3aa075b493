"""The optimizer step: its sums, and whatever is edited trains the same with compiled kernels and without."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from lenet import Classifier, LeNet, Synthetic
from lenet.fast import CompiledNetwork
from lenet.training.comparison import compare
from lenet.training.fast_steps import FusedStep
from lenet.training.step import PlainStep
from lenet.training.sums import Sums
from tests.training.small import at, fit

IMAGES = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))


def classifier(
    fuse: bool = True, net: Callable[[], nn.Module] = LeNet, kind: type[Classifier] = Classifier, **more: Any
) -> Classifier:
    torch.manual_seed(0)
    return kind(net(), partial(SGD, lr=0.05), fuse=fuse, blocks=True, seed=0, **more)


def test_sums_are_over_images_whatever_the_sizes_of_batches() -> None:
    logits, labels = torch.randn(10, 10), torch.randint(0, 10, (10,))
    sums = Sums()
    for part in (slice(0, 7), slice(7, 8), slice(8, 10)):
        sums.add_batch(F.cross_entropy(logits[part], labels[part]), logits[part], labels[part])
    sums.read(leave=1)
    assert sums.images == 8
    assert sums.read() == sums.read() == torch.inf
    assert sums.images == 10
    assert sums.mean_loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert sums.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_sums_name_the_first_step_whose_loss_is_not_a_number() -> None:
    sums = Sums()
    sums.add(torch.tensor([1.0, 2.0]), torch.tensor(3), [4, 4], first_step=1)
    sums.add(torch.tensor([1.0, torch.nan, torch.inf]), torch.tensor(3), [4, 4, 4], first_step=3)
    assert sums.read() == 4


class Altered(PlainStep):
    """A step with a mistake, made on its loss, its logits and the module."""

    mistake = "none"

    def gradients(self, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        loss, logits = super().gradients(images, labels, total)
        parameters = dict(self.module.named_parameters())
        if self.mistake in parameters:
            parameters[self.mistake].grad = parameters[self.mistake].detach().clone()
        return loss * (1.01 if self.mistake == "loss" else 1), logits * (-1 if self.mistake == "right answers" else 1)


@pytest.mark.parametrize("mistake", ["none", "loss", "right answers", "net.conv1.bias", "net.fc2.weight"])
def test_a_comparison_names_what_differs(mistake: str) -> None:
    step = Altered(classifier())
    step.mistake = mistake
    found = compare(PlainStep(step.module), step, IMAGES, LABELS)
    assert found is None if mistake == "none" else mistake in str(found)


# Edits: each trains with fuse=true as it does with fuse=false.

SMALL = {"train_size": 600, "test_size": 50, "val_size": 90, "batch_size": 64, "block_steps": 3}


class Doubled(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * F.cross_entropy(logits, labels)


class OwnLoss(Classifier):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(logits, labels)


def replace(name: str, layer: Callable[[], nn.Module]) -> Callable[[Any], object]:
    return lambda module: setattr(module.net, name, layer())


def replace_widths(module: Any) -> None:
    module.net.fc1, module.net.fc2 = nn.Linear(400, 50), nn.Linear(50, 84)


def replace_parameters(module: Any) -> None:
    module.net.conv1.bias = nn.Parameter(module.net.conv1.bias.detach().clone())
    module.net.conv2.weight = nn.Parameter(module.net.conv2.weight.detach().clone().transpose(2, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "published": LeNet,
    "max pooling": partial(LeNet, pool=nn.MaxPool2d, activation=nn.ReLU),
    "dropout": partial(LeNet, dropout=0.3),
    "tanh": partial(LeNet, activation=nn.Tanh),
    "channels": partial(LeNet, channels=(10, 32)),
    "hidden": partial(LeNet, hidden=(100, 60, 30)),
    "kernel size": partial(LeNet, kernel_size=3),
    "normalised": partial(LeNet, norm=nn.BatchNorm2d, hidden_norm=nn.BatchNorm1d),
    "no sequence": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
}
EDITS: dict[str, Callable[[Any], object]] = {
    "replaced layer": replace("fc2", lambda: nn.Linear(120, 84)),
    "replaced activation": replace("act1", nn.Tanh),
    "replaced by another width": replace_widths,
    "replaced parameters": replace_parameters,
    "layer without a bias": replace("conv1", partial(nn.Conv2d, 1, 6, 5, padding=2, bias=False)),
    "frozen parameters": lambda module: module.net.conv1.requires_grad_(False),
    "forward hook": lambda module: module.net.conv1.register_forward_hook(lambda layer, given, output: 2 * output),
    "hook of the whole": lambda module: module.net.register_forward_hook(lambda layer, given, output: 2 * output),
    "weight hook": lambda module: module.net.fc3.weight.register_hook(lambda gradient: gradient / 2),
    "changed loss": lambda module: setattr(module, "loss", Doubled()),
}
MODULES: dict[str, Callable[[bool], Classifier]] = {
    "own loss": partial(classifier, loss=Doubled()),
    "label smoothing": partial(classifier, loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    "weighted classes": partial(classifier, loss=nn.CrossEntropyLoss(weight=torch.arange(10.0))),
    "overridden loss": partial(classifier, kind=OwnLoss),
}


def train(module: Classifier, *callbacks: pl.Callback) -> Classifier:
    return fit(callbacks, data=Synthetic(**SMALL), module=module)


def assert_trains_alike(make: Callable[[bool], Classifier], *callbacks: pl.Callback) -> None:
    fused, plain = (train(make(fuse), *callbacks) for fuse in (True, False))
    for tag in ("train/loss", "train/acc", "val/loss"):
        assert fused.metrics[tag] == pytest.approx(plain.metrics[tag], rel=2e-3, abs=2e-3), tag
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.compiled
def test_lenet_as_published_is_trained_by_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    step = train(classifier())._step
    assert isinstance(step, FusedStep)
    assert step.network.is_whole
    assert not [line for line in caplog.messages if "fuse=true" in line]


@pytest.mark.compiled
def test_another_loss_is_trained_by_pytorch_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    step = train(classifier(loss=Doubled()))._step
    assert type(step) is PlainStep
    assert len([line for line in caplog.messages if "fuse=true" in line and "loss" in line]) == 1


@pytest.mark.compiled
def test_equal_pixels_do_not_make_the_kernels_look_wrong() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        module = classifier(net=partial(LeNet, pool=nn.MaxPool2d, activation=nn.GELU, norm=nn.BatchNorm2d))
        images = (255 * torch.randint(2, (64, 1, 4, 4)).byte()).repeat_interleave(7, 2).repeat_interleave(7, 3)
        step = FusedStep(module, CompiledNetwork(module.net))
        assert compare(PlainStep(module), step, images, torch.randint(10, (64,))) is None


def edit(name: str, module: Classifier) -> None:
    torch.manual_seed(1)  # with kernels and without, the new layers are the same
    EDITS[name](module)


def edited(name: str, fuse: bool) -> Classifier:
    module = classifier(fuse)
    edit(name, module)
    return module


MAKERS: dict[str, Callable[[bool], Classifier]] = {
    **{name: partial(classifier, net=net) for name, net in NETWORKS.items()},
    **{name: partial(edited, name) for name in EDITS},
    **MODULES,
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_edited_trains_alike(name: str) -> None:
    assert_trains_alike(MAKERS[name])


@pytest.mark.parametrize("name", EDITS)
def test_what_is_edited_during_training_trains_alike(name: str) -> None:
    assert_trains_alike(classifier, at(2, partial(edit, name)))


def test_half_precision_converts_the_weights_anew_in_each_step() -> None:
    modules = [classifier(), Classifier(classifier().net, partial(SGD, lr=0.05), init="none", seed=0)]
    for steps, module in zip((3, 1), modules, strict=True):
        fit([], data=Synthetic(**SMALL | {"block_steps": steps}), module=module, precision="bf16-mixed")
    assert modules[0].metrics["train/loss"] == modules[1].metrics["train/loss"]
