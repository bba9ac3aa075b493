"""The Classifier as a library: with Lightning's own Trainer, whatever the batches."""

import gc
import logging
import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.tuner import Tuner  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from lenet import Classifier, LeNet, Synthetic
from lenet.data.augment import Augment
from lenet.errors import DivergenceError, UserError
from lenet.layers import Conv2d, MaxPool2d
from tests.training.small import fit, trainer


def synthetic(**changes: Any) -> Synthetic:
    return Synthetic(**{"train_size": 300, "test_size": 50, "batch_size": 64, "val_size": 90, **changes})


def loader(size: int = 200) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.rand(size, 1, 28, 28), torch.randint(10, (size,))), batch_size=50)


def test_a_plain_trainer_trains_twice_in_a_row_and_leaves_signals_logging_and_gc() -> None:
    def surroundings() -> tuple[Any, ...]:
        root = logging.getLogger()
        return (
            signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), gc.isenabled(), gc.get_threshold(),
            gc.get_freeze_count(), root.level, list(root.handlers),
        )  # fmt: skip

    before = surroundings()
    for _ in range(2):
        module = Classifier(LeNet())
        trainer(max_epochs=1, enable_progress_bar=True, num_sanity_val_steps=2).fit(module, synthetic())
        assert math.isfinite(module.metrics["val/loss"])
    assert surroundings() == before


def test_testing_returns_the_metrics() -> None:
    module, data = Classifier(LeNet()), synthetic()
    (result,) = trainer().test(module, data, verbose=False)
    data.setup()
    images, labels = data.images("test")
    logits = module(images[:, None])
    assert result["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result["test/acc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_prediction_gives_a_class_for_each_image() -> None:
    module = Classifier(LeNet())
    images: Any = torch.rand(50, 1, 28, 28)
    for data in (loader(), DataLoader(images, batch_size=50)):
        predictions = trainer().predict(module, data)
        assert predictions is not None
        assert predictions[0].shape == (50,)  # type: ignore[union-attr]
        assert predictions[0].dtype == torch.int64  # type: ignore[union-attr]


def test_lightnings_finder_of_learning_rates_runs_and_its_choice_is_used(tmp_path: Path) -> None:
    module = Classifier(LeNet(activation=nn.Tanh), partial(SGD, lr=0.1))
    found = Tuner(trainer(default_root_dir=tmp_path)).lr_find(
        module, loader(2000), num_training=20, early_stop_threshold=None
    )
    assert found is not None
    assert found.suggestion() == module.lr
    run = trainer()
    run.fit(module, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == module.lr


@pytest.mark.parametrize(
    "net", [LeNet(), LeNet(activation=nn.Tanh, channels=(4, 8), hidden=(30,)), LeNet(norm=nn.BatchNorm2d, dropout=0.1)]
)
def test_a_checkpoint_loads_without_arguments(net: LeNet, tmp_path: Path) -> None:
    module, run = Classifier(net, partial(SGD, lr=0.1)), trainer()
    run.fit(module, synthetic())
    run.save_checkpoint(tmp_path / "some.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "some.ckpt", weights_only=True)
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(loaded.eval()(images), module.eval()(images))


def test_a_checkpoint_of_a_network_that_was_edited_is_refused(tmp_path: Path) -> None:
    module, run = Classifier(LeNet()), trainer()
    module.net.act1 = nn.Tanh()
    run.fit(module, synthetic())
    run.save_checkpoint(tmp_path / "some.ckpt")
    with pytest.raises(UserError, match="load_from_checkpoint"):
        Classifier.load_from_checkpoint(tmp_path / "some.ckpt", weights_only=True)
    net = LeNet()
    net.act1 = nn.Tanh()
    loaded = Classifier.load_from_checkpoint(tmp_path / "some.ckpt", net=net, weights_only=True)
    assert torch.equal(loaded.net.state_dict()["fc3.weight"], module.net.state_dict()["fc3.weight"])


class BreaksAt(nn.Module):
    """Passes its input on, but gives NaN at one forward pass in training."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, logits: Tensor) -> Tensor:
        self.calls += self.training
        return logits * math.nan if self.training and self.calls == self.step else logits


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (4, 1), (7, 2)])
def test_a_loss_that_became_nan_stops_training_and_names_its_step(step: int, epoch: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), BreaksAt(step))  # four steps an epoch
    with pytest.raises(DivergenceError, match=rf"step {step}, in epoch {epoch},.* 0\.01; .*optimizer\.lr"):
        trainer(max_epochs=3).fit(Classifier(net, partial(SGD, lr=0.01), blocks=True), synthetic(block_steps=2))


@pytest.mark.parametrize("block_steps", [2, 3, 100])
def test_blocks_change_nothing_but_what_lightning_takes_for_a_batch(block_steps: int) -> None:
    found = []
    for steps in (1, block_steps):
        torch.manual_seed(0)
        schedule = partial(ExponentialLR, gamma=0.5)
        net = LeNet(dropout=0.2)
        module = Classifier(net, partial(SGD, lr=0.5), schedule, fuse=False, blocks=steps > 1, seed=0)
        run = trainer()
        run.fit(module, datamodule=synthetic(block_steps=steps))
        found.append((module, run.global_step))
    (one, its_steps), (other, steps) = found
    assert its_steps == steps == 8
    assert other.metrics["lr"] == 0.5 * 0.5**7  # the rate that the last step used
    assert other.metrics == pytest.approx(one.metrics, rel=1e-5)
    for name, weights in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weights)


@pytest.mark.parametrize("layers", ["builtin", pytest.param("im2col", marks=pytest.mark.long)])
def test_compilers_and_torch_func_take_the_classifier(layers: str) -> None:
    net = LeNet(conv=Conv2d, pool=MaxPool2d, activation=nn.ReLU) if layers == "im2col" else LeNet()
    module: Any = Classifier(net)
    images, labels = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8), torch.tensor([1, 2, 3])

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return module.loss(functional_call(module, parameters, (images,)), labels)  # type: ignore[no-any-return]

    def loss_of_one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss(parameters, image[None], label[None])

    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    module.loss(compiled(images), labels).backward()
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    gradients = grad(loss)(parameters, images, labels)
    each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))(parameters, images, labels)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(each[name].mean(dim=0), parameter.grad, rtol=1e-3, atol=1e-6)


def test_weight_decay_can_leave_out_biases_and_normalisations() -> None:
    module = Classifier(LeNet(norm=nn.BatchNorm2d), partial(SGD, lr=0.5, weight_decay=0.5), decay="weights")
    before = {name: value.clone() for name, value in module.net.named_parameters()}
    optimizer = module.make_optimizer()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {name for name, value in module.net.named_parameters() if not torch.equal(value, before[name])}
    assert decayed == {f"{layer}.weight" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3")}


def test_a_run_without_a_limit_of_epochs_can_be_augmented() -> None:
    module = Classifier(LeNet(), augment=Augment(mixup=0.2, mixup_until=0.5), blocks=True)
    data = Synthetic(train_size=60, test_size=10, val_size=10, batch_size=10, block_steps=2)
    fit([], data=data, module=module, max_epochs=-1, max_time={"seconds": 0.2})
    assert module.images_trained > 0
