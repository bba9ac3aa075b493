"""The layers and their namesakes in torch.nn are interchangeable."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lenet import layers
from lenet.models import LeNet
from tests.layers.cases import assert_close, each_algorithm

CONVOLUTIONS = [(layers.Conv2d, nn.Conv2d), (layers.ConvTranspose2d, nn.ConvTranspose2d)]


@pytest.mark.parametrize(("ours", "theirs"), CONVOLUTIONS)
def test_the_same_seed_gives_the_same_parameters(ours: Any, theirs: Any) -> None:
    states = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        states.append(layer(4, 6, (3, 2), stride=2, groups=2).state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), CONVOLUTIONS)
def test_a_checkpoint_of_one_loads_into_the_other(ours: Any, theirs: Any) -> None:
    images = torch.rand(2, 4, 7, 7)
    for source, target in ((ours, theirs), (theirs, ours)):
        trained, loaded = source(4, 6, 3), target(4, 6, 3)
        loaded.load_state_dict(trained.state_dict())
        assert_close(loaded(images), trained(images), 1e-6)


@each_algorithm
@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(algorithm: str, padding_mode: Any, padding: Any) -> None:
    theirs = nn.Conv2d(2, 3, (3, 4), padding=padding, padding_mode=padding_mode)
    ours = layers.Conv2d(2, 3, (3, 4), padding=padding, padding_mode=padding_mode, algorithm=algorithm)
    ours.load_state_dict(theirs.state_dict())
    for images in (torch.rand(2, 2, 6, 7), torch.rand(2, 6, 7)):
        assert_close(ours(images), theirs(images), 1e-5)


def test_a_transposed_convolution_to_a_given_size() -> None:
    ours, theirs = (package.ConvTranspose2d(2, 3, 3, stride=2, padding=1) for package in (layers, nn))
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 2, 7, 5)
    for output_size in ([13, 10], [14, 9], [2, 3, 14, 10]):
        assert_close(ours(images, output_size), theirs(images, output_size), 1e-5)


def test_a_size_that_no_output_padding_gives_is_refused() -> None:
    with pytest.raises(RuntimeError, match="output_padding"):
        layers.ConvTranspose2d(2, 3, 3, stride=2, padding=1)(torch.rand(2, 2, 7, 5), [12, 9])


def test_pooling_layers() -> None:
    arguments: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
    values = torch.rand(2, 3, 8, 8)
    assert_close(layers.AvgPool2d(**arguments)(values), nn.AvgPool2d(**arguments)(values), 1e-6)
    ours, theirs = (package.MaxPool2d(**arguments, return_indices=True)(values) for package in (layers, nn))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "MaxPool2d", "AvgPool2d"])
def test_an_activation_in_place_may_follow(name: str) -> None:
    arguments = (2,) if "Pool" in name else (3, 3, 2)
    gradients = []
    for package in (layers, nn):
        torch.manual_seed(0)
        layer = getattr(package, name)(*arguments)
        images = torch.randn(2, 3, 6, 6, requires_grad=True)
        gradients.append(torch.autograd.grad(nn.ReLU(inplace=True)(layer(images)).sum(), images)[0])
    assert_close(gradients[0], gradients[1], 1e-5)


def test_layers_can_be_copied_and_pickled() -> None:
    layer, images = layers.Conv2d(1, 2, 3, algorithm="fft"), torch.rand(1, 1, 5, 5)
    assert "algorithm=fft" in repr(layer)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  our own bytes
        assert repr(copied) == repr(layer)
        assert torch.equal(copied(images), layer(images))


def lenets(algorithm: str) -> tuple[LeNet, LeNet]:
    """LeNet with our layers and with torch's, with the same weights."""
    torch.manual_seed(0)
    ours = LeNet(conv=partial(layers.Conv2d, algorithm=algorithm), pool=layers.AvgPool2d)
    theirs = LeNet()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@each_algorithm
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_lenet_gives_the_same_logits(algorithm: str, memory_format: torch.memory_format) -> None:
    images = torch.rand(64, 1, 28, 28).to(memory_format=memory_format)
    ours, theirs = (net.to(memory_format=memory_format)(images) for net in lenets(algorithm))
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.long
@each_algorithm
def test_lenet_has_the_same_loss_curve_over_20_steps(algorithm: str) -> None:
    images, labels = torch.rand(20, 32, 1, 28, 28), torch.randint(10, (20, 32))
    curves = torch.zeros(2, 20)
    for net, curve in zip(lenets(algorithm), curves, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.9)
        for step in range(20):
            loss = F.cross_entropy(net(images[step]), labels[step])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve[step] = loss.detach()
    assert curves[1].std() > 0.01  # something happens
    assert (curves[0] - curves[1]).abs().max() < 1e-3
