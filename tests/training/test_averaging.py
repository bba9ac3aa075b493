"""Averaged weights: which mean they are, and that the run continues from the raw ones."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.optim import SGD

from lenet import Classifier, LeNet, Synthetic, load
from lenet.config import compose_settings
from lenet.training import parts
from lenet.training.averaging import STATE, Averaging
from lenet.training.checkpoint import read
from tests.conftest import TrainCommand
from tests.training.small import fit, trainer

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
    for count, weights in enumerate(passed[1:], start=1):
        expected = torch.lerp(expected, weights, 1 - min(0.5, (1 + count) / (10 + count)))
    torch.testing.assert_close(module.get_parameter("net.fc3.bias"), expected)


def test_the_plain_mean_begins_when_it_should() -> None:
    passed, module = trained(Averaging(every_n_steps=2, start=0.5))
    torch.testing.assert_close(module.get_parameter("net.fc3.bias"), torch.stack(passed[11::2]).mean(0))


def test_until_it_begins_the_raw_weights_are_the_runs() -> None:
    passed, module = trained(Averaging(start=0.99, every_n_steps=100))
    assert torch.equal(module.get_parameter("net.fc3.bias"), passed[-1])
    assert module.metrics["val/loss"] == module.metrics["val_raw/loss"]


def test_a_run_that_is_too_short_to_average_says_so(caplog: pytest.LogCaptureFixture) -> None:
    trained(Averaging(decay=0.5, every_n_steps=1000))
    assert [line for line in caplog.messages if "average.every_n_steps=1000" in line]


def test_the_averaged_network_has_statistics_of_its_own() -> None:
    data = Synthetic(**DATA)
    _, module = trained(Averaging(decay=0.9))
    data.setup()
    net, images = module.net, data.images("train").images[:, None] / 255
    assert isinstance(net, LeNet)
    with torch.no_grad():
        expected = net[:2](images).mean((0, 2, 3))  # of what the first normalisation gets
    torch.testing.assert_close(module.get_buffer("net.norm1.running_mean"), expected)


@pytest.mark.long
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


def test_a_run_that_was_killed_before_its_test_is_tested_with_the_averaged_weights(
    train_here: TrainCommand, tmp_path: Path
) -> None:
    words = (*SMALL, "model=lenet_norm", "average=ema", "average.decay=0.9", "trainer.max_epochs=2")
    before = train_here(*words, folder=tmp_path).metrics
    (tmp_path / "metrics.json").unlink()
    after = train_here(*words, f"resume={tmp_path}", folder=tmp_path).metrics
    assert after["test/loss"] == before["test/loss"]


def test_the_network_of_an_averaged_run_is_the_averaged_one(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "model=lenet_norm", "average=ema", "average.decay=0.95", "trainer.max_epochs=2")
    data = Synthetic(train_size=1200, val_size=200, test_size=100)
    data.setup()
    images, labels = data.images("val")
    accuracy = float((load(run.folder).predict(images)[0] == labels).float().mean())
    assert accuracy == pytest.approx(run.metrics["val/acc"])


def test_each_step_can_count(train_here: TrainCommand) -> None:
    settings = compose_settings(*SMALL, "average=ema", "average.every_n_steps=1")
    assert parts.steps_in_block(settings, parts.callbacks_of(settings)) == 1


def test_what_is_saved_after_training_has_both_networks(tmp_path: Path) -> None:
    data, averaging = Synthetic(**DATA), Averaging(decay=0.9)
    module = Classifier(LeNet(), partial(SGD, lr=0.1), seed=0)
    run = trainer(callbacks=[averaging])
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "after.ckpt")
    saved = read(tmp_path / "after.ckpt")
    assert torch.equal(saved["state_dict"]["net.fc3.bias"], module.get_parameter("net.fc3.bias"))
    assert not torch.equal(saved[STATE]["raw"]["fc3.bias"], module.get_parameter("net.fc3.bias"))


def test_a_checkpoint_without_averages_can_be_trained_on_with_them(tmp_path: Path) -> None:
    data, module = Synthetic(**DATA), Classifier(LeNet(), partial(SGD, lr=0.1), seed=0)
    plain = trainer(max_epochs=1)
    plain.fit(module, datamodule=data)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    run = trainer(callbacks=[Averaging()], max_epochs=2)
    run.fit(module, datamodule=data, ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert math.isfinite(module.metrics["val/loss"])


def test_what_cannot_be_averaged_is_refused() -> None:
    for wrong in ({"decay": 1.0}, {"every_n_steps": 0}, {"start": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Averaging(**wrong)
