"""Networks that were trained, loaded again: whatever they are made of."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

import lenet
from lenet import Classifier, LeNet, Synthetic
from lenet.errors import UserError
from lenet.inference.evaluate import data_of, evaluate
from lenet.inference.export import FORMS, export
from lenet.training import checkpoint
from tests.conftest import Finished, TrainCommand

SMALL = ("data=synthetic", "data.train_size=700", "data.val_size=100", "data.test_size=90", "trainer.max_epochs=1")


class OwnNetwork(nn.Module):
    """A user's network, which is no Sequential."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, width, 7, stride=3), nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(images).relu().mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    "words",
    [
        ("model=lenet_relu",),
        ("model=lenet_norm",),
        ("model.channels=[4,8]", "model.activation._target_=torch.nn.Tanh", "model.dropout=0.5"),
        ("model._target_=tests.inference.test_model.OwnNetwork", "+model.width=5"),
        ("layers=taps", "model=lenet_relu"),
    ],
    ids=lambda words: words[0],
)
def test_a_run_of_any_network_is_loaded_evaluated_and_exported_and_predicts_as_it_was_tested(
    train_here: TrainCommand, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run = train_here(*SMALL, *words)
    net = lenet.load(run.folder)
    data = Synthetic(test_size=90)
    data.setup()
    images, labels = data.images("test")
    predicted, probabilities = net.predict(images)
    assert (predicted == labels).double().mean().item() == run.metrics["test/acc"]
    assert net.classes == data.class_names
    assert probabilities.shape == (90, 10)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(90))
    assert evaluate("run", net, data_of(run.folder)).measures["acc"] == run.metrics["test/acc"]
    for form in FORMS:
        export(net, form, tmp_path, data)
    assert torch.equal(lenet.load(tmp_path / "model.safetensors").predict(images)[1], probabilities)


def test_images_are_taken_in_every_form(finished_run: Finished) -> None:
    net = lenet.load(finished_run.folder / "checkpoints" / "last.ckpt")
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    expected, _ = net.predict(images)
    assert torch.equal(net.predict(images[:, None])[0], expected)
    assert torch.equal(net.predict(images / 255)[0], expected)
    assert torch.equal(net.predict(images.long().numpy())[0], expected)
    assert net.predict(images[0].tolist())[0].tolist() == expected[:1].tolist()


@pytest.mark.parametrize("value", [-1, 256, -0.5, 1.5, float("nan")])
def test_values_outside_their_range_are_refused(finished_run: Finished, value: float) -> None:
    with pytest.raises(UserError, match="images: should be whole numbers from 0 to 255, or floats from 0 to 1"):
        lenet.load(finished_run.folder).predict(torch.full((28, 28), value))


@pytest.mark.parametrize("shape", [(32, 32), (2, 3, 28, 28), (28,), (1, 2, 2, 28, 28)])
def test_another_shape_is_named_in_one_line(finished_run: Finished, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"images: have the shape .*\(N, 1, 28, 28\)"):
        lenet.load(finished_run.folder)(torch.rand(shape))


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 1, 32, 32), (2, 3, 28, 28)])
def test_lenet_itself_names_the_shape_that_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"LeNet takes \(N, 1, 28, 28\)"):
        LeNet()(torch.rand(shape))


def test_a_checkpoint_of_a_plain_trainer_is_loaded(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=2, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(Classifier(LeNet(channels=(3, 5))), Synthetic(train_size=600, test_size=20, val_size=100))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    net = lenet.load(tmp_path / "own.ckpt")
    assert net.classes[0] == "disc"
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    checkpoint.WholeFileIO().save_checkpoint({"state_dict": {}, "hyper_parameters": {"net": None}}, tmp_path / "a.ckpt")
    for name, message in (
        ("", "no checkpoint"),
        ("text.ckpt", "is damaged, or no checkpoint"),
        ("a.ckpt", "which network"),
    ):
        with pytest.raises(UserError, match=message):
            lenet.load(tmp_path / name)


# init_from


def test_a_run_begins_with_the_weights_of_another(train_here: TrainCommand) -> None:
    first = train_here(*SMALL, "model=lenet_relu")
    again = train_here(*SMALL, "model=lenet_relu", f"init_from={first.folder}", "optimizer.lr=1e-20")
    ours, theirs = (lenet.load(run.folder).state_dict() for run in (again, first))
    assert all(torch.allclose(ours[name], theirs[name]) for name in theirs)
    assert checkpoint.read_run(again.folder)["settings"]["init_from"] == str(first.folder)


def test_weights_for_another_head_are_refused_or_those_that_fit_are_taken(train_here: TrainCommand) -> None:
    first = train_here(*SMALL)
    words = (*SMALL, f"init_from={first.folder}", "model.hidden=[120,50]", "optimizer.lr=1e-20")
    with pytest.raises(UserError, match=r"init_from=.*net.fc2.bias.*init_from_strict=false"):
        train_here(*words)
    ours, theirs = (
        lenet.load(run.folder).state_dict() for run in (train_here(*words, "init_from_strict=false"), first)
    )
    same = [name for name in theirs if ours[name].shape == theirs[name].shape]
    assert len(same) == 6 + 1  # conv1, conv2, fc1, and the bias of fc3
    assert all(torch.allclose(ours[name], theirs[name]) for name in same)


def test_a_place_without_weights_is_named(train_here: TrainCommand, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from=.*has no checkpoint"):
        train_here(*SMALL, f"init_from={tmp_path}")
