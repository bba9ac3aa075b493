"""Whole runs: what they print, leave and measure, on one process and on two."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from lenet.config import compose_settings
from lenet.training.checkpoint import read
from lenet.training.run import TAGS
from tests.commands import Commands
from tests.conftest import Finished, TrainCommand

SMALL = (
    "data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100", "dashboard=minimal",
    "trainer.max_epochs=2",
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read(folder / "checkpoints" / "last.ckpt")["state_dict"])


def test_output_into_a_pipe(finished_run: Finished) -> None:
    assert finished_run.stderr == ""
    lines = finished_run.stdout.splitlines()
    if shutil.which("gcc") is None:
        assert "gcc" in lines.pop(0)
    assert [line.split()[0] for line in lines[:14:13]] == ["stage", "total"]
    assert lines[15] == f"Run folder: {finished_run.folder}"
    assert [line.split(":")[0] for line in lines[16:-2]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    m = finished_run.metrics
    loss, train_acc, test_acc = m["train/loss"], m["train/acc"], m["test/acc"]
    assert lines[-2] == f"loss {loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}"
    assert lines[-1] == f"{m['train/examples_per_sec']:.1f} examples/sec on {m['device']}"


def test_files_of_a_run(finished_run: Finished) -> None:
    names = {re.sub(r"tfevents.*", "tfevents", path.name) for path in finished_run.folder.iterdir()}
    files = {".hydra", "train.log", "metrics.json", "run.json", "checkpoints", "events.out.tfevents"}
    assert names - {".lock"} == files | {"projector", "projector_config.pbtxt"}


def test_metrics_json(finished_run: Finished) -> None:
    metrics = finished_run.metrics
    others = {"best_val_acc", "epochs", "images", "seed", "device", "parameters", "seconds", "versions", "steps"}
    assert set(metrics) == set(TAGS) | others | {"dashboard_seconds", "checkpoint_seconds"}
    assert (metrics["epochs"], metrics["images"], metrics["seed"], metrics["parameters"]) == (3, 15_000, 0, 61_706)
    assert metrics["best_val_acc"] == pytest.approx(max(value for _, value in finished_run.scalars("val/acc")))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(train_here: TrainCommand) -> None:
    runs = [train_here(*SMALL, "trainer.max_epochs=1", f"seed={seed}") for seed in (0, 0, 1)]
    first, again, other = (weights(run.folder) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


@pytest.mark.long
@pytest.mark.parametrize("layers", ["loops", "taps", "im2col", "kernel_matrix", "fft"])
def test_layers_from_scratch_train_as_the_builtin_ones_do(train_here: TrainCommand, layers: str) -> None:
    small = (*SMALL, "data.train_size=360", "data.batch_size=64", "model=lenet_relu", "trainer.max_epochs=1")
    ours, builtin = (weights(train_here(*small, f"layers={name}").folder) for name in (layers, "builtin"))
    torch.testing.assert_close(ours, builtin, rtol=0, atol=1e-4)


def test_all_images_and_the_test_set_after_each_epoch(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "data.val_size=0", "test_every_epoch=true")
    assert len(run.scalars("test/acc")) == 2
    assert run.metrics["images"] == 2 * 1200
    assert (run.metrics["val/acc"], run.metrics["best_val_acc"]) == (None, None)


def test_a_budget_of_steps_ends_with_an_evaluation_and_a_checkpoint(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "trainer.max_steps=3", "trainer.max_epochs=5")
    assert run.metrics["images"] == 232 + 2 * 256  # what does not fill a batch comes first
    assert [step for step, _ in run.scalars("val/acc")] == [3]
    assert read(run.folder / "checkpoints" / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize("lr", ["3e38", "1e9"])
def test_a_diverging_run_ends_with_one_line(train_command: TrainCommand, lr: str) -> None:
    run = train_command(*SMALL, "model=lenet_relu", f"optimizer.lr={lr}")
    assert run.status == 1
    (line,) = run.stderr.splitlines()
    assert "optimizer.lr" in line
    assert line in (run.folder / "train.log").read_text()
    assert not (run.folder / "metrics.json").exists()


def test_the_sprint_on_the_real_images(train_here: TrainCommand, real_root: Path) -> None:
    # One seed, the accuracy less a few of its standard deviations: a defect costs more.
    run = train_here("experiment=sprint", f"data.root={real_root}", "dashboard=minimal")
    assert run.metrics["val/acc"] > 0.80


# 1,003 images in batches of 64: the first has 43, which two processes cannot share equally.
SHARED = (*SMALL, "data.batch_size=64", "data.train_size=1203", "data.test_size=151", "optimizer.lr=0.5")


@pytest.mark.long
def test_two_processes_that_lightning_starts_train_as_one_does(train_command: TrainCommand) -> None:
    one, two = (train_command(*SHARED, *device) for device in (["device=cpu"], ["device=ddp", "device.devices=2"]))
    assert (one.status, two.status, two.stderr) == (0, 0, "")
    assert len(two.stdout.splitlines()) == len(one.stdout.splitlines())
    assert (two.metrics["images"], two.metrics["device"]) == (2006, "2 × cpu")
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"):
        assert two.metrics[tag] == pytest.approx(one.metrics[tag], rel=1e-4)
    torch.testing.assert_close(weights(two.folder), weights(one.folder), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_as_torchrun_starts_them_train_as_one_does(
    commands: Commands, train_here: TrainCommand, tmp_path: Path, nodes: int
) -> None:
    processes = commands.start_together(*SHARED, f"hydra.run.dir={tmp_path / 'run'}", nodes=nodes, cwd=tmp_path)
    outputs = ["".join(each.communicate(timeout=180)) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], outputs
    assert "".join(outputs).count("Run folder:") == 1  # the first speaks for all
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    one = train_here(*SHARED, "device=cpu")
    torch.testing.assert_close(weights(tmp_path / "run"), weights(one.folder), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lr", "learns"), [(0.001, True), (1e-9, False)])
def test_a_run_that_has_learnt_nothing_says_so_and_what_to_try(
    train_here: TrainCommand, caplog: pytest.LogCaptureFixture, lr: float, learns: bool
) -> None:
    words = ("data=synthetic", "data.train_size=4000", "model=lenet_relu", "optimizer=adam", "trainer.max_epochs=1")
    train_here(*words, f"optimizer.lr={lr}")
    assert any("learnt nothing: test acc 0." in m and f"optimizer.lr={lr}" in m for m in caplog.messages) != learns


def test_the_published_run_with_another_model_has_that_models_learning_rate() -> None:
    assert compose_settings("experiment=d2l").optimizer.lr == 0.9
    assert compose_settings("experiment=d2l", "model=lenet_relu").optimizer.lr == 0.1


def test_the_projector_takes_little_room(finished_run: Finished) -> None:
    assert sum(path.stat().st_size for path in (finished_run.folder / "projector").iterdir()) < 2_000_000
