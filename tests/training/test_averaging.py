"""Averaged weights: which mean they are, and that the run continues from the raw ones."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.optim import SGD

from lenet import Classifier, LeNet, Synthetic
from lenet.training.averaging import STATE, Averaging
from lenet.training.checkpoint import read
from tests.conftest import TrainCommand
from tests.training.small import fit

DATA = {"train_size": 700, "test_size": 50, "val_size": 60, "batch_size": 64}  # ten steps an epoch
SMALL = ("data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100", "optimizer=adam")


def trained(averaging: Averaging, **data: Any) -> tuple[list[Tensor], Classifier]:
    """A bias after each block of steps, and the module at the end of two epochs."""
    passed: list[Tensor] = []

    def note(trainer: Any, module: Any, *_: Any) -> None:
        passed.append(module.net.fc3.bias.detach().clone())

    blocks = data.get("block_steps", 1) > 1
    module = Classifier(LeNet(norm=nn.BatchNorm2d), partial(SGD, lr=0.1), blocks=blocks, seed=0)
    watch = LambdaCallback(on_train_batch_end=note)
    return passed, fit([watch, averaging], data=Synthetic(**DATA | data), module=module)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_moving_average_is_that_of_the_weights(steps: int) -> None:
    passed, module = trained(Averaging(decay=0.5, every_n_steps=steps), block_steps=steps)
    expected = passed[0]
    for weights in passed[1:]:
        expected = (expected + weights) / 2
    torch.testing.assert_close(module.get_parameter("net.fc3.bias"), expected)


def test_the_plain_mean_begins_when_it_should() -> None:
    passed, module = trained(Averaging(every_n_steps=2, start=0.5))
    torch.testing.assert_close(module.get_parameter("net.fc3.bias"), torch.stack(passed[11::2]).mean(0))


def test_until_it_begins_the_raw_weights_are_the_runs() -> None:
    passed, module = trained(Averaging(start=0.99, every_n_steps=100))
    assert torch.equal(module.get_parameter("net.fc3.bias"), passed[-1])
    assert module.metrics["val/loss"] == module.metrics["val_raw/loss"]


def test_the_averaged_network_has_statistics_of_its_own() -> None:
    data = Synthetic(**DATA)
    _, module = trained(Averaging(decay=0.9))
    data.setup()
    net, images = module.net, data.images("train").images[:, None] / 255
    assert isinstance(net, LeNet)
    with torch.no_grad():
        expected = net[:2](images).mean((0, 2, 3))  # of what the first normalisation gets
    torch.testing.assert_close(module.get_buffer("net.norm1.running_mean"), expected)


def test_both_networks_are_validated_and_saved_and_training_continues_from_the_raw_one(
    train_here: TrainCommand, tmp_path: Path
) -> None:
    words = (
        *SMALL,
        "model=lenet_norm",
        "average=ema",
        "average.every_n_steps=2",
        "augment=mixup",
        "model.dropout=0.1",
    )
    whole = train_here(*words, "trainer.max_epochs=4")
    parted = train_here(*words, "trainer.max_epochs=2", folder=tmp_path)
    saved = read(parted.folder / "checkpoints" / "last.ckpt")
    assert not torch.equal(saved["state_dict"]["net.fc1.weight"], saved[STATE]["raw"]["fc1.weight"])
    train_here(*words, "trainer.max_epochs=4", f"resume={parted.folder}", folder=parted.folder)
    for key in ("train/loss", "val/loss", "val_raw/loss", "test/loss", "train/acc"):
        assert whole.metrics[key] == parted.metrics[key], key
    assert whole.metrics["val/loss"] != whole.metrics["val_raw/loss"]


def test_what_cannot_be_averaged_is_refused() -> None:
    for wrong in ({"decay": 1.0}, {"every_n_steps": 0}, {"start": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Averaging(**wrong)
