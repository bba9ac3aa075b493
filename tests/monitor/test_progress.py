from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
from torch.optim import SGD

from lenet.data.module import SyntheticDataModule
from lenet.models.lenet import LeNet
from lenet.monitor.progress import Progress
from lenet.monitor.throughput import Throughput
from lenet.training.module import Classifier


class CountingTerminal(io.StringIO):
    """Counts how often something is drawn over the current line."""

    def isatty(self) -> bool:
        return True

    @property
    def redrawn(self) -> int:
        return self.getvalue().count("\r")


def train(folder: Path) -> None:
    throughput = Throughput()
    pl.Trainer(
        max_epochs=2,
        log_every_n_steps=10,
        accelerator="cpu",
        logger=False,
        callbacks=[throughput, Progress(throughput)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).fit(
        Classifier(LeNet(), partial(SGD, lr=0.1)),
        datamodule=SyntheticDataModule(train_size=250, test_size=10, batch_size=8, val_size=10),
    )


def test_a_line_an_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="lenet")
    train(tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == "lenet.monitor.progress"]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line in lines:
        for part in ("train loss ", "val loss ", "acc ", "examples/s"):
            assert part in line
        assert "test" not in line


def test_into_a_pipe_no_bar_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    train(tmp_path)
    assert pipe.getvalue() == ""


def test_on_a_terminal_the_bar_is_drawn_at_log_points_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = CountingTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    train(tmp_path)
    for part in ("epoch 2/2", "30/30", "loss ", "acc ", "examples/s"):
        assert part in terminal.getvalue()
    # 30 steps an epoch are 3 log points; the bar is also drawn when it appears and when it goes (three times \r).
    assert 2 <= terminal.redrawn <= 2 * (3 + 4)
