"""Whole runs of train.py: what they print, what they leave, that they agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lenet.cli import compose_settings
from lenet.config import Settings
from lenet.errors import UserError
from lenet.training import run as training
from lenet.training.module import Classifier
from lenet.training.run import TAGS, build_classifier
from tests.commands import PROJECT, Commands
from tests.conftest import Finished, TrainCommand, imported_by
from tests.training.test_module import BreaksAt

SMALL = ("data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=200", "trainer.max_epochs=2")


def weights(run: Finished) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def test_output_into_a_pipe(finished_run: Finished) -> None:
    assert finished_run.stderr == ""
    lines = finished_run.stdout.splitlines()
    if shutil.which("gcc") is None:
        assert lines.pop(0).startswith("fuse=true: there is no gcc")
    start = [line.split()[0] for line in lines[:14]]
    assert (start[0], start[1], start[12], start[13]) == ("stage", "conv1", "fc3", "total")
    assert lines[15] == f"Run folder: {finished_run.folder}"
    assert [line.split(":")[0] for line in lines[16:-2]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    m = finished_run.metrics
    loss, train_acc, test_acc = m["train/loss"], m["train/acc"], m["test/acc"]
    assert lines[-2] == f"loss {loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}"
    assert lines[-1] == f"{m['train/examples_per_sec']:.1f} examples/sec on {m['device']}"


def test_without_a_compiler_a_run_says_so_once_and_goes_on(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    once = (*SMALL, "trainer.max_epochs=1")
    alone = [commands.start("train.py", *once, f"hydra.run.dir={tmp_path / 'alone'}")]
    for processes in (alone, commands.start_together(*once, f"hydra.run.dir={tmp_path / 'together'}")):
        said = "".join("".join(each.communicate(timeout=120)) for each in processes)
        assert [each.returncode for each in processes] == [0] * len(processes), said
        assert said.count("fuse=true: there is no gcc on this machine") == 1


def test_a_run_loads_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What else may be installed: as transformers, it needs the compiler.
    package = tmp_path / "packages" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import torch._dynamo.config")
    about = package.with_name("transformers-5.0.0.dist-info")
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    imported, done = imported_by(*SMALL, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0
    assert {"torch", "lightning.pytorch", "torchmetrics.metric"} <= imported
    assert imported.isdisjoint({"torchvision", "matplotlib", "transformers", "torch._dynamo", "plotly"})


@pytest.mark.long
def test_torchs_compiler_is_there_for_those_who_use_it() -> None:
    program = """
from lenet import lean
import sys
import torch
from lightning.pytorch.utilities.compile import OptimizedModule
assert "torch._dynamo.eval_frame" not in sys.modules
net = torch.nn.Linear(2, 2)
assert not isinstance(net, OptimizedModule)
compiled = torch.compile(net, backend="eager")
assert isinstance(compiled, OptimizedModule) and not isinstance(net, OptimizedModule)
assert torch.equal(compiled(torch.ones(1, 2)), net(torch.ones(1, 2)))
import torch._dynamo.config
print(torch._dynamo.config.verbose)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_model_learns_the_synthetic_images(finished_run: Finished) -> None:
    assert finished_run.metrics["test/acc"] > 0.95


def test_what_a_run_leaves(finished_run: Finished) -> None:
    names = {re.sub(r"tfevents.*", "tfevents", path.name) for path in finished_run.folder.iterdir()}
    files = {".hydra", "train.log", "metrics.json", "checkpoints", "events.out.tfevents"}
    assert names == files | {".lock", "run.json", "projector", "projector_config.pbtxt"}
    log = (finished_run.folder / "train.log").read_text()
    for line in finished_run.stdout.splitlines():
        assert line in log


def test_metrics_json(finished_run: Finished) -> None:
    metrics = finished_run.metrics
    others = {"best_val_acc", "epochs", "images", "seed", "device", "parameters", "seconds", "versions", "steps"}
    assert set(metrics) == set(TAGS) | others | {"dashboard_seconds", "checkpoint_seconds"}
    assert 0 < metrics["dashboard_seconds"] < 10
    assert (metrics["epochs"], metrics["images"], metrics["seed"]) == (3, 15_000, 0)
    assert metrics["parameters"] == 61_706
    assert metrics["best_val_acc"] == pytest.approx(max(value for _, value in finished_run.scalars("val/acc")))
    assert set(metrics["versions"]) == {"python", "torch", "lightning"}
    assert 0 < metrics["seconds"] < 60


def test_the_same_seed_gives_the_same_weights_and_zero_is_a_seed(train_here: TrainCommand) -> None:
    first, again, other = (weights(train_here(*SMALL, f"seed={seed}")) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


@pytest.mark.parametrize("layers", ["loops", "taps", "im2col", "kernel_matrix", "fft"])
def test_layers_from_scratch_train_as_the_builtin_ones_do(train_here: TrainCommand, layers: str) -> None:
    small = ("data=synthetic", "data.train_size=560", "data.val_size=48", "data.test_size=48", "data.batch_size=64")
    runs = [
        train_here(*small, "model=lenet_relu", "trainer.max_epochs=1", f"layers={name}") for name in (layers, "builtin")
    ]
    for tag in ("train/loss", "val/loss", "test/loss"):
        ours, theirs = (run.metrics[tag] for run in runs)
        assert ours == pytest.approx(theirs, rel=1e-3)
    for name, expected in weights(runs[1]).items():
        torch.testing.assert_close(weights(runs[0])[name], expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def one_and_two(train_command: TrainCommand) -> tuple[Finished, Finished]:
    """The same run by one process, and by two of which Lightning starts the second.

    1,003 images in batches of 64: the first has 43, which two processes cannot share equally.
    """
    settings = (*SMALL, "data.batch_size=64", "data.train_size=1203", "data.test_size=151", "optimizer.lr=0.5")
    one = train_command(*settings, "device=cpu")
    two = train_command(*settings, "device=ddp", "device.devices=2")
    assert (one.status, two.status) == (0, 0), two.stderr
    return one, two


def test_two_processes_train_as_one_does(one_and_two: tuple[Finished, Finished]) -> None:
    one, two = one_and_two
    assert two.stderr == ""
    assert len(two.stdout.splitlines()) == len(one.stdout.splitlines())
    assert two.metrics["images"] == one.metrics["images"] == 2006
    assert two.metrics["device"] == "2 × cpu"
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"):
        assert two.metrics[tag] == pytest.approx(one.metrics[tag], rel=1e-4)
    for name, expected in weights(one).items():
        torch.testing.assert_close(weights(two)[name], expected, rtol=1e-4, atol=1e-5)


def test_two_processes_draw_all_images_once(one_and_two: tuple[Finished, Finished]) -> None:
    for tag in ("val/predictions", "test/confusion"):
        ours, theirs = (run.events.images.Items(tag)[0].encoded_image_string for run in one_and_two)
        assert ours == theirs
    labels = [(run.folder / "projector" / "labels.tsv").read_text() for run in one_and_two]
    assert labels[0] == labels[1]
    assert len(labels[0].splitlines()) == 152


TOGETHER = (*SMALL, "data.batch_size=64", "data.train_size=1203", "trainer.max_epochs=2", "trainer.max_steps=20")


def assert_trained_as_one(outputs: list[str], folder: Path, train_here: TrainCommand) -> None:
    """The run of two processes in the folder `run`, with these outputs."""
    two = Finished(0, outputs[0], "", folder / "run")
    assert "".join(outputs).count("Run folder:") == outputs[0].count("Run folder:") == 1  # the first speaks for all
    assert [path.name for path in folder.iterdir()] == ["run"]
    one = train_here(*TOGETHER, "device=cpu")
    assert two.metrics["device"] == "2 × cpu"
    assert two.metrics["images"] == one.metrics["images"] == 43 + 15 * 64 + 43 + 3 * 64
    for name, expected in weights(one).items():
        torch.testing.assert_close(weights(two)[name], expected, rtol=0, atol=1e-5)


@pytest.mark.long
def test_processes_that_torchrun_starts_train_as_one_does(train_here: TrainCommand, tmp_path: Path) -> None:
    words = [*TOGETHER, "device=ddp", "device.devices=2", "device.accelerator=cpu", f"hydra.run.dir={tmp_path / 'run'}"]
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            str(PROJECT / "train.py"), *words,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert_trained_as_one([run.stdout], tmp_path, train_here)


def test_processes_on_two_machines_train_as_one_does(
    commands: Commands, train_here: TrainCommand, tmp_path: Path
) -> None:
    processes = commands.start_together(*TOGETHER, f"hydra.run.dir={tmp_path / 'run'}", nodes=2, cwd=tmp_path)
    outputs = ["".join(each.communicate(timeout=120)) for each in processes]
    assert [each.returncode for each in processes] == [0, 0], outputs
    assert_trained_as_one(outputs, tmp_path, train_here)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(("device=cpu",), id="one"),
        pytest.param(("device=ddp", "device.devices=2"), id="two processes", marks=pytest.mark.long),
    ],
)
def test_a_diverging_run_ends_with_one_line(train_command: TrainCommand, device: tuple[str, ...]) -> None:
    run = train_command(*SMALL, "optimizer.lr=3e38", *device)
    assert run.status != 0
    (line,) = run.stderr.splitlines()
    assert "optimizer.lr=3e+38" in line
    assert line in (run.folder / "train.log").read_text()
    assert not (run.folder / "metrics.json").exists()


def test_a_diverging_run_names_its_step(train_here: TrainCommand) -> None:
    message = r"at step \d+, in epoch 1, with optimizer\.lr=3e\+38; .*; no checkpoint was written"
    with pytest.raises(UserError, match=message):
        train_here(*SMALL, "optimizer.lr=3e38")


def test_a_diverging_run_keeps_the_last_good_checkpoint(
    train_here: TrainCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(settings: Settings, *_: object) -> Classifier:
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), BreaksAt(step=6))  # of 4 an epoch
        return Classifier(net, partial(SGD, lr=0.01))

    monkeypatch.setattr(training, "build_classifier", build)
    with pytest.raises(UserError, match=r"at step 6, in epoch 2, .* the last good weights are in ") as caught:
        train_here(*SMALL)
    folder = Path(str(caught.value).rsplit(" are in ", 1)[1]).parent
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
    assert not (folder.parent / "metrics.json").exists()


def test_all_images_and_the_test_set_after_each_epoch(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "data.val_size=0", "test_every_epoch=true")
    assert len(run.scalars("test/acc")) == 2
    assert run.metrics["images"] == 2 * 1200
    assert run.metrics["val/acc"] is None
    assert run.metrics["best_val_acc"] is None
    assert not (run.folder / "checkpoints" / "best.ckpt").exists()


def test_trainer_arguments_pass_through(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "+trainer.limit_train_batches=2", "+trainer.gradient_clip_val=1.0")
    # The 1,000 images are batches of 232, 256, 256 and 256.
    assert run.metrics["images"] == 2 * (232 + 256)


def test_a_run_in_half_precision(train_here: TrainCommand) -> None:
    short = (*SMALL, "trainer.max_steps=4")
    whole, half = (train_here(*short, f"precision={precision}") for precision in ("float32", "bf16"))
    assert half.metrics["train/loss"] == pytest.approx(whole.metrics["train/loss"], rel=1e-2)
    assert half.metrics["train/loss"] != whole.metrics["train/loss"]
    assert all(value.dtype == torch.float32 for value in weights(half).values())


def test_a_budget_of_steps_ends_with_an_evaluation_and_a_checkpoint(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "trainer.max_steps=3", "trainer.max_epochs=5")
    assert run.metrics["images"] == 232 + 2 * 256
    assert [step for step, _ in run.scalars("val/acc")] == [3]
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt"]
    assert torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(("experiment", "most"), [("sprint", 5_000), ("speedrun", 120_000)])
def test_the_quick_experiments_keep_to_their_images_and_parameters(experiment: str, most: int) -> None:
    settings = compose_settings(PROJECT, f"experiment={experiment}")
    data, limit = settings.data, settings.trainer.max_steps
    steps = settings.trainer.max_epochs * -(-(60_000 - data.val_size) // data.batch_size)
    assert min(steps, limit if limit != -1 else steps) * data.batch_size <= most
    assert sum(p.numel() for p in build_classifier(settings, torch.device("cpu")).parameters()) <= 62_200


def test_the_sprint_on_the_real_images(train_here: TrainCommand, real_root: Path) -> None:
    # One seed, the accuracy less a few of its standard deviations: a defect costs more.
    run = train_here("experiment=sprint", f"data.root={real_root}")
    assert run.metrics["images"] == 150 * 16 - 16 + 8  # what does not fill a batch comes first
    assert run.metrics["val/acc"] > 0.78


def test_clipping_reaches_the_classifier_in_any_precision(train_here: TrainCommand) -> None:
    clipping = ("+trainer.gradient_clip_val=1e-9", "precision=bf16", "trainer.max_steps=2")
    start, clipped = (weights(train_here(*SMALL, *clipping, f"optimizer.lr={lr}")) for lr in (1e-30, 0.5))
    for name, value in start.items():
        torch.testing.assert_close(clipped[name], value, rtol=0, atol=1e-8)


def test_a_trial_run_of_one_batch(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "+trainer.fast_dev_run=true")
    assert run.metrics["images"] == 232


def test_what_was_not_measured_is_null(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "+trainer.limit_test_batches=0")
    assert run.metrics["test/acc"] is None


def test_the_real_images(train_command: TrainCommand, real_root: Path) -> None:
    run = train_command(f"data.root={real_root}", "model=lenet_relu", "optimizer=adam", "trainer.max_epochs=1")
    assert run.status == 0, run.stderr
    assert run.metrics["images"] == 55_000
    assert run.metrics["val/acc"] > 0.7
    assert run.metrics["test/acc"] > 0.7
