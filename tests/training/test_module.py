from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from lenet.data.module import Batch, ImageDataModule, SyntheticDataModule
from lenet.errors import DivergenceError
from lenet.models.lenet import LeNet, NormalizedLeNet
from lenet.monitor.throughput import Throughput
from lenet.training.module import Classifier
from lenet.training.tally import Tally


def synthetic(**changes: Any) -> ImageDataModule:
    arguments: dict[str, Any] = {"train_size": 300, "test_size": 50, "batch_size": 64, "val_size": 90} | changes
    return SyntheticDataModule(**arguments)


def fit(module: Classifier, data: ImageDataModule, folder: Path, **arguments: Any) -> pl.Trainer:
    resume = arguments.pop("resume", {})
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "log_every_n_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**(defaults | arguments))
    trainer.fit(module, datamodule=data, **resume)
    return trainer


def test_tally_adds_up_over_batches_of_different_sizes() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 10), torch.randint(0, 10, (10,))
    tally = Tally()
    for part in (slice(0, 7), slice(7, 8), slice(8, 10)):
        tally.add(F.cross_entropy(logits[part], labels[part], reduction="sum"), logits[part], labels[part])
        tally.read()
    assert tally.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert tally.acc == (logits.argmax(1) == labels).double().mean().item()


def test_epoch_means_are_over_all_images_not_over_batches(tmp_path: Path) -> None:
    # With a learning rate of (almost) nothing the weights stay, and the means can be computed another way.
    torch.manual_seed(0)
    module, data = Classifier(LeNet(), partial(SGD, lr=1e-30)), synthetic(test_every_epoch=True)
    fit(module, data, tmp_path)
    loaders = {"train": data.train_dataloader()}
    loaders |= dict(zip(("val", "test"), data.val_dataloader(), strict=True))
    for stage, loader in loaders.items():
        batches = [batch for block in loader for batch in block.batches()]
        images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
        logits = module(images)
        assert module.metrics[f"{stage}/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
        assert module.metrics[f"{stage}/acc"] == (logits.argmax(1) == labels).double().mean().item()


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = Classifier(LeNet(), partial(SGD, lr=0.5)), synthetic()
    plain = LeNet()
    plain.load_state_dict(module.net.state_dict())
    fit(module, data, tmp_path, max_epochs=2)

    optimizer = SGD(plain.parameters(), lr=0.5)
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in (batch for block in loader for batch in block.batches()):
            optimizer.zero_grad()
            F.cross_entropy(plain(batch.images / 255), batch.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, weights in plain.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("split", [[32, 32], [33, 31], [64, 0]], ids=str)
def test_the_mean_of_the_devices_gradients_is_the_gradient_of_the_whole_batch(split: list[int]) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))
    module = Classifier(LeNet(), partial(SGD, lr=0.5))

    class TwoDevices:
        world_size = 2

    module._trainer = TwoDevices()  # type: ignore[assignment]
    parts = zip(torch.split(images, split), torch.split(labels, split), strict=True)
    weights = list(module.parameters())
    losses = [module.loss(Batch(i, t, total=64, stage="train")) for i, t in parts]
    mean = torch.autograd.grad(sum(losses, torch.tensor(0.0)) / 2, weights)
    whole = torch.autograd.grad(F.cross_entropy(module(images), labels), weights)
    torch.testing.assert_close(mean, whole)


class BreaksAt(nn.Module):
    """Passes its input on, but gives NaN at one forward pass in training."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, logits: Tensor) -> Tensor:
        self.calls += self.training
        return logits * math.nan if self.training and self.calls == self.step else logits


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7], ids=lambda step: f"step {step}")
def test_a_loss_that_is_no_number_stops_training_and_names_its_step(step: int, tmp_path: Path) -> None:
    # Four steps an epoch, numbers read after every second.
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), BreaksAt(step))
    module = Classifier(net, partial(SGD, lr=0.01))
    with pytest.raises(DivergenceError, match=rf"at step {step}, in epoch {1 + (step - 1) // 4},.*optimizer\.lr=0\.01"):
        fit(module, synthetic(), tmp_path, max_epochs=3)


def test_weights_spoilt_by_the_last_step_do_not_pass_the_evaluation(tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=math.inf))
    with pytest.raises(DivergenceError, match="val/loss after step 1"):
        fit(module, synthetic(batch_size=210), tmp_path)


def test_weights_spoilt_by_the_last_step_are_not_saved(tmp_path: Path) -> None:
    class Untouched(pl.Callback):
        """Like ModelCheckpoint, its turn is after the module's."""

        saved = False

        def on_train_epoch_end(self, *_: Any) -> None:
            self.saved = True

    module, witness = Classifier(LeNet(), partial(SGD, lr=math.inf)), Untouched()
    data = synthetic(batch_size=300, val_size=0)
    with pytest.raises(DivergenceError, match="weights are not numbers any more after step 1"):
        fit(module, data, tmp_path, callbacks=[Throughput(), witness])
    assert not witness.saved


def test_an_epoch_that_is_cut_short_reports_the_images_it_saw(tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, max_steps=3)
    assert module.training_tally.images == 18 + 64 + 64  # what is left of 210 comes first
    assert module.metrics["train/loss"] == module.training_tally.loss


def test_a_sanity_check_is_not_an_epoch(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, Classifier)
            assert pl_module.best_val_acc is None
            assert pl_module.metrics == {}
            trainer.should_stop = True

    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, callbacks=[Look()], num_sanity_val_steps=2)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions_train(precision: str, tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=0.1))
    fit(module, synthetic(), tmp_path, precision=precision)
    assert math.isfinite(module.metrics["train/loss"])


def test_the_logged_rate_is_the_one_the_last_step_used(tmp_path: Path) -> None:
    def halve(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        assert total_steps == 8
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    module = Classifier(LeNet(), partial(SGD, lr=1.0), halve)
    fit(module, synthetic(), tmp_path, max_epochs=2)
    assert module.metrics["lr"] == 0.5**7


def halve_every_second_step(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def in_blocks(steps: int, folder: Path, **arguments: Any) -> tuple[Classifier, pl.Trainer]:
    """Train for two epochs of four steps, so many of them in a block, with a schedule."""
    torch.manual_seed(0)
    module = Classifier(LeNet(), partial(SGD, lr=0.5), halve_every_second_step)
    return module, fit(module, synthetic(block_steps=steps), folder, **({"max_epochs": 2} | arguments))


@pytest.mark.parametrize("steps", [2, 3, 4, 100])
def test_blocks_change_nothing_but_what_lightning_takes_for_a_batch(steps: int, tmp_path: Path) -> None:
    (one, single), (other, blocks) = in_blocks(1, tmp_path / "1"), in_blocks(steps, tmp_path / "2")
    assert blocks.num_training_batches == -(-4 // steps)
    assert blocks.global_step == single.global_step == 8
    assert other.metrics == one.metrics
    assert one.metrics["lr"] == 0.5 * 0.5**3  # three halvings before the last of eight steps
    for name, weights in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weights)


def test_checkpoints_count_optimizer_steps(tmp_path: Path) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    in_blocks(3, tmp_path, enable_checkpointing=True, callbacks=[saver])
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=4.ckpt", "step=8.ckpt"}
    checkpoint = torch.load(tmp_path / "step=8.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 8


def test_resuming_after_an_epoch_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole, _ = in_blocks(3, tmp_path, enable_checkpointing=True, callbacks=[saver])
    torch.manual_seed(1)  # other weights, to be replaced
    resumed = Classifier(LeNet(), partial(SGD, lr=0.5), halve_every_second_step)
    last = {"ckpt_path": tmp_path / "step=4.ckpt", "weights_only": True}
    trainer = fit(resumed, synthetic(block_steps=3), tmp_path, max_epochs=2, resume=last)
    assert trainer.global_step == 8
    for name, weights in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weights)


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_max_steps_ends_training_within_a_block(steps: int, limit: int, tmp_path: Path) -> None:
    module, trainer = in_blocks(steps, tmp_path, max_steps=limit)
    assert trainer.global_step == limit
    assert module.images_trained == sum([18, 64, 64, 64, 18][:limit])


def test_numbers_are_read_at_log_points_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Tally.read

    def count(self: Tally) -> list[float]:
        losses = read(self)
        reads.append(len(losses))
        return losses

    monkeypatch.setattr(Tally, "read", count)
    module = Classifier(LeNet(), partial(SGD, lr=0.5))
    fit(module, synthetic(val_size=0, batch_size=30, block_steps=3), tmp_path, log_every_n_steps=3)  # ten steps
    assert [steps for steps in reads if steps] == [3, 3, 3, 1]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier(LeNet(), partial(SGD, lr=1.0), gradient_clip_val=0.25, gradient_clip_algorithm="norm")
    before = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    fit(module, synthetic(), tmp_path, max_steps=1)
    after = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("net", [LeNet, NormalizedLeNet])
def test_warming_up_leaves_no_trace(net: type[nn.Module]) -> None:
    module = Classifier(net(), partial(SGD, lr=0.5))
    weights, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    module.warm_up([8, 3])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


class Listens(pl.Callback):
    """Has Lightning do all it does around a step."""

    calls = 0

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.calls += 1


def test_a_hook_around_each_step_is_called_and_changes_nothing(tmp_path: Path) -> None:
    listener = Listens()
    (one, first), (other, second) = in_blocks(3, tmp_path), in_blocks(3, tmp_path, callbacks=[listener])
    assert listener.calls == 8
    assert first.global_step == second.global_step == 8
    for name, weights in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weights, rtol=1e-4, atol=1e-5)


def test_a_hook_that_is_set_on_a_callback_is_called(tmp_path: Path) -> None:
    calls: list[int] = []
    listener = LambdaCallback(on_after_backward=lambda trainer, *_: calls.append(trainer.global_step))
    in_blocks(3, tmp_path, callbacks=[listener])
    assert calls == list(range(8))


def test_a_profiler_sees_each_step(tmp_path: Path) -> None:
    profiler = SimpleProfiler()
    in_blocks(3, tmp_path, profiler=profiler)
    assert len(profiler.recorded_durations["optimizer_step"]) == 8


@pytest.mark.compiled
def test_fused_or_not_the_course_of_training_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, plain = (Classifier(LeNet(), partial(SGD, lr=0.5), fuse=choice) for choice in (True, False))
    plain.load_state_dict(module.state_dict())
    for each in (module, plain):
        fit(each, synthetic(block_steps=4), tmp_path, max_epochs=2)
    assert module._fused is not None
    assert plain._fused is None
    for name, weights in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weights, rtol=1e-4, atol=1e-5)
