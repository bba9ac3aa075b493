"""Open roles: the user's own classes, and other people's, in each section of the configuration."""

from typing import Any

import pytest

from lenet.training.checkpoint import read
from tests.conftest import Finished, TrainCommand

SMALL = (
    "data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100", "dashboard=minimal",
    "trainer.max_epochs=2",
)  # fmt: skip

MINE = '''
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Residual(nn.Module):
    """Takes images (N, 3, 8, 8), with names that no other network has."""

    def __init__(self, width, in_channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.last = nn.Linear(width, classes)

    def forward(self, images):
        values = self.stem(images)
        return self.last((values + values.relu()).mean((2, 3)))


class SlowSGD(torch.optim.SGD):
    def __init__(self, params, lr, slowness):
        super().__init__(params, lr / slowness)


class Colours(lightning.LightningDataModule):
    image_shape, classes, class_names = (3, 8, 8), 3, ("red", "green", "blue")

    def __init__(self, size, batch_size):
        super().__init__()
        self.size, self.batch_size = size, batch_size

    def _loader(self):
        labels = torch.arange(self.size) % 3
        images = torch.rand(self.size, 3, 8, 8) / 2
        images[torch.arange(self.size), labels] += 0.5
        return DataLoader(TensorDataset(images, labels), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Counts(lightning.Callback):
    batches = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
        module.publish({"batches": self.batches})
'''

OWN = (
    "data._target_=mine.Colours", "+data.size=120", "data.batch_size=20", "model._target_=mine.Residual",
    "+model.width=4", "optimizer._target_=mine.SlowSGD", "optimizer.lr=1", "+optimizer.slowness=10",
    "+callbacks.counts._target_=mine.Counts", "trainer.max_epochs=2", "logger=[tensorboard,csv]",
)  # fmt: skip


@pytest.fixture(scope="module")
def own_run(train_command: TrainCommand, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of the classes in a file beside the current folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    run = train_command(*OWN, folder=folder / "run", cwd=folder)
    assert run.status == 0, run.stderr
    return run


def test_own_model_data_optimizer_and_callback_work(own_run: Finished) -> None:
    assert own_run.metrics["val/acc"] > 0.6
    assert own_run.metrics["lr"] == pytest.approx(0.1)
    assert own_run.metrics["images"] == 240
    assert own_run.metrics["batches"] == 12


def test_several_loggers_get_the_same_numbers(own_run: Finished) -> None:
    header, *lines = next(own_run.folder.rglob("metrics.csv")).read_text().splitlines()
    column = header.split(",").index("val/acc")
    found = [float(line.split(",")[column]) for line in lines if line.split(",")[column]]
    assert found == pytest.approx([value for _, value in own_run.scalars("val/acc")], rel=1e-5)


def test_a_run_of_own_classes_can_be_resumed(own_run: Finished, train_command: TrainCommand) -> None:
    run = train_command(
        f"resume={own_run.folder}", "trainer.max_epochs=3", folder=own_run.folder, cwd=own_run.folder.parent
    )
    assert run.status == 0, run.stderr
    assert run.metrics["epochs"] == 3


def test_the_exercises_of_the_chapter_are_overrides(train_here: TrainCommand) -> None:
    run = train_here(
        *SMALL, "model.channels=[10,32]", "model.activation._target_=torch.nn.Tanh", "model.dropout=0.2",
        "model.hidden=[60]", "model.kernel_size=3", "optimizer.lr=0.1",
    )  # fmt: skip
    weights = read(run.folder / "checkpoints" / "last.ckpt")["state_dict"]
    shapes = [tuple(weights[f"net.{name}.weight"].shape) for name in ("conv1", "conv2", "fc1", "fc2")]
    assert shapes == [(10, 1, 3, 3), (32, 10, 3, 3), (60, 32 * 36), (10, 60)]
    assert run.metrics["train/loss"] < 2.2


def test_early_stopping_ends_a_run_early(train_here: TrainCommand) -> None:
    run = train_here(
        *SMALL, "callbacks=[early_stopping,lr_monitor]", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9",
        "optimizer.lr=1e-30",
    )  # fmt: skip
    assert run.metrics["epochs"] == 2
    assert read(run.folder / "checkpoints" / "last.ckpt")["epoch"] == 1
    assert run.metrics["test/acc"] is not None


# Of 1,000 images, four steps of up to 256 an epoch; what does not fill a batch comes first.
OUTCOMES: dict[str, tuple[str, Any]] = {
    "+trainer.accumulate_grad_batches=2": ("steps", 4),
    "+trainer.fast_dev_run=true": ("images", 232),
    "+trainer.limit_train_batches=2": ("images", 2 * (232 + 256)),
    "+trainer.limit_test_batches=0": ("test/acc", None),
    "loss.label_smoothing=1": ("train/loss", pytest.approx(2.31, abs=0.1)),  # at its least where all are alike
    "logger=none": ("epochs", 2),
    "scheduler={_target_:torch.optim.lr_scheduler.StepLR,step_size:4}": ("lr", pytest.approx(0.09)),
    "optimizer._target_=torch.optim.Adagrad": ("epochs", 2),
    "precision=bf16": ("epochs", 2),
}


@pytest.mark.parametrize("override", OUTCOMES)
def test_an_override_does_what_it_says(train_here: TrainCommand, override: str) -> None:
    tag, expected = OUTCOMES[override]
    assert train_here(*SMALL, override).metrics[tag] == expected


def test_a_profiler_and_a_summary_print_their_tables(train_command: TrainCommand) -> None:
    run = train_command(*SMALL, "+trainer.profiler=simple", "+trainer.enable_model_summary=true")
    assert run.status == 0, run.stderr
    said = run.stdout + run.stderr
    assert "optimizer_step" in said
    assert "Trainable params" in said


def test_a_limit_of_time_ends_a_run(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "+trainer.max_time={seconds:1}", "trainer.max_epochs=100000")
    assert 0 < run.metrics["epochs"] < 100_000


def test_overfitting_trains_on_the_same_images_in_each_epoch(train_here: TrainCommand) -> None:
    # At this learning rate the weights stay: the loss is that of the images.
    run = train_here(*SMALL, "+trainer.overfit_batches=1", "optimizer.lr=1e-30")
    losses = [value for _, value in run.scalars("train/loss")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
