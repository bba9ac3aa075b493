"""The page that explains a prediction."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lenet import Classifier, LeNet, Synthetic
from lenet.inference.model import TrainedNetwork
from lenet.layers import Conv2d, MaxPool2d
from lenet.reports.explain import add_explanation, nearest
from lenet.reports.page import Page
from tests.commands import Commands
from tests.conftest import Finished


@pytest.fixture
def data() -> Synthetic:
    data = Synthetic(train_size=200, test_size=10, val_size=0)
    data.setup()
    return data


def trained(net: nn.Module, data: Synthetic) -> TrainedNetwork:
    return TrainedNetwork(Classifier(net), data.class_names, (1, 28, 28))


def test_contributions_add_up_to_what_the_picture_changes(data: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    net = trained(LeNet(conv=Conv2d, pool=MaxPool2d, activation=nn.ReLU), data)
    add_explanation(Page("", "", printed=True), net, data.images("test").images[:1], data.train_dataloader())
    printed = capsys.readouterr().out
    total, change = map(float, re.findall(r"(?:add up to|differs by) (-?\d+\.\d+)", printed))
    assert total == pytest.approx(change, abs=0.05)
    for name in ("filters", "conv1, Conv2d: 6×28×28", "pool2, MaxPool2d: 16×5×5", "fc3, Linear: 10"):
        assert name in printed


def test_a_network_without_linear_layers_is_explained(data: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    net = trained(nn.Sequential(nn.Conv2d(1, 10, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()), data)
    add_explanation(Page("", "", printed=True), net, data.images("test").images[:1], data.train_dataloader())
    assert "0, Conv2d: 10×24×24" in capsys.readouterr().out


def test_the_nearest_training_image_of_a_training_image_is_itself(data: Synthetic) -> None:
    images, labels = data.images("train")
    found = nearest(trained(LeNet(activation=nn.ReLU), data), images[3:4, None], data.train_dataloader())
    distance, plane, label = found[0]
    assert distance == pytest.approx(0, abs=1e-5)
    assert torch.equal(plane, images[3])
    assert label == labels[3]
    assert [each[0] for each in found] == sorted(each[0] for each in found)


@pytest.mark.parametrize("picture", ["shoe.png", "3"])
def test_the_command_writes_a_page(commands: Commands, finished_run: Finished, tmp_path: Path, picture: str) -> None:
    Image.new("RGB", (60, 40), "white").save(tmp_path / "shoe.png")
    done = commands.run("scripts/explain.py", str(finished_run.folder), picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "explanation.html").read_text()
    for mark in ("Prediction", "Pixels", "Stages", "Neighbours"):
        assert f'<h2 id="{mark}">' in page


@pytest.mark.parametrize(("picture", "message"), [("10000", "test images"), ("none.png", "none.png: is no picture")])
def test_the_command_names_what_is_wrong(
    commands: Commands, finished_run: Finished, tmp_path: Path, picture: str, message: str
) -> None:
    done = commands.run("scripts/explain.py", str(finished_run.folder), picture, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
