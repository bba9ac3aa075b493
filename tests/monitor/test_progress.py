import io
import sys
from functools import partial

import pytest
from tqdm import tqdm

from lenet.data import Synthetic
from lenet.models import LeNet
from lenet.monitor import progress
from lenet.monitor.progress import Progress
from lenet.monitor.throughput import Throughput
from lenet.training.module import Classifier
from tests.training.small import fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, mininterval=0, miniters=1))
    return terminal


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lenet.monitor.progress"]


def test_a_line_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="lenet")
    fit([Throughput(), Progress()])
    assert [line.split(":")[0] for line in lines(caplog)] == ["epoch 1/2", "epoch 2/2"]
    for line in lines(caplog):
        for part in ("train loss ", "val loss ", "acc ", "examples/s"):
            assert part in line
        assert "test" not in line


def test_without_a_number_of_epochs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="lenet")
    fit([Progress()], max_epochs=-1, max_steps=6, limit_val_batches=0)
    first, second = lines(caplog)
    assert first.startswith("epoch 1/?: train loss ")
    assert "val" not in first
    assert second.endswith("trainer.max_steps=6 ends it")


def test_into_a_pipe_no_bar_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    fit([Progress()])
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_bar_is_drawn_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    fit([Progress()])
    for part in ("epoch 2/2", "50%"):
        assert part in screen.getvalue()
    assert screen.getvalue().split("\r")[-2].isspace()


def test_with_blocks_the_bar_shows_loss_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    data = Synthetic(train_size=250, test_size=10, batch_size=8, val_size=10, block_steps=10)
    fit([Progress()], data=data, module=Classifier(LeNet(), blocks=True, fuse=False), max_epochs=1)
    for part in ("33%", "loss ", "acc "):
        assert part in screen.getvalue()
