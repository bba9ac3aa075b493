import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lenet.models.lenet import LeNet, NormalizedLeNet, xavier_uniform_


def test_each_stage_has_the_published_output_shape() -> None:
    expected = {
        "conv1": (6, 28, 28),
        "act1": (6, 28, 28),
        "pool1": (6, 14, 14),
        "conv2": (16, 10, 10),
        "act2": (16, 10, 10),
        "pool2": (16, 5, 5),
        "flatten": (400,),
        "fc1": (120,),
        "act3": (120,),
        "fc2": (84,),
        "act4": (84,),
        "fc3": (10,),
    }
    values = torch.zeros(2, 1, 28, 28)
    shapes = {}
    for name, stage in LeNet().named_children():
        values = stage(values)
        shapes[name] = tuple(values.shape[1:])
    assert shapes == expected


def test_parameter_count() -> None:
    assert sum(p.numel() for p in LeNet().parameters()) == 61_706


def test_forward_equals_the_formula() -> None:
    torch.manual_seed(0)
    net, images = LeNet(), torch.rand(3, 1, 28, 28)
    p = dict(net.named_parameters())
    x = F.avg_pool2d(torch.sigmoid(F.conv2d(images, p["conv1.weight"], p["conv1.bias"], padding=2)), 2)
    x = F.avg_pool2d(torch.sigmoid(F.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2).flatten(1)
    x = torch.sigmoid(x @ p["fc1.weight"].T + p["fc1.bias"])
    x = torch.sigmoid(x @ p["fc2.weight"].T + p["fc2.bias"])
    torch.testing.assert_close(net(images), x @ p["fc3.weight"].T + p["fc3.bias"])


def test_layers_come_from_the_factories() -> None:
    class OtherConv(nn.Conv2d):
        pass

    net = LeNet(conv=OtherConv, pool=nn.MaxPool2d, activation=nn.ReLU)
    kinds = [type(stage) for stage in net]
    assert kinds.count(OtherConv) == 2
    assert kinds.count(nn.MaxPool2d) == 2
    assert kinds.count(nn.ReLU) == 4


def test_normalized_lenet_is_lenet_with_normalisation_before_each_activation() -> None:
    net = NormalizedLeNet()
    names = [name for name, _ in net.named_children()]
    assert [names[names.index(f"norm{number}") + 1] for number in (1, 2, 3, 4)] == ["act1", "act2", "act3", "act4"]
    shapes = {name: value.shape for name, value in LeNet().named_parameters()}
    assert {name: value.shape for name, value in net.named_parameters() if "norm" not in name} == shapes


@pytest.mark.parametrize(("hidden_norm", "parameters"), [(nn.BatchNorm1d, 62_158), (None, 61_750)])
def test_normalized_lenet_keeps_within_62_200_parameters(hidden_norm: type[nn.Module] | None, parameters: int) -> None:
    assert sum(p.numel() for p in NormalizedLeNet(hidden_norm=hidden_norm).parameters()) == parameters


def test_normalized_lenet_normalises() -> None:
    torch.manual_seed(0)
    net, images = NormalizedLeNet(), 5 + torch.rand(64, 1, 28, 28)
    values = net.norm1(net.pool1(net.conv1(images)))  # type: ignore[operator]
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std((0, 2, 3)), torch.ones(6), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [(nn.Conv2d(6, 16, 5), 6 * 25, 16 * 25), (nn.Linear(400, 120), 400, 120)],
    ids=["convolution", "linear"],
)
def test_xavier_fills_the_published_range_and_leaves_biases(layer: nn.Module, fan_in: int, fan_out: int) -> None:
    torch.manual_seed(0)
    bias = layer.bias.clone()  # type: ignore[operator]
    xavier_uniform_(layer)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.99 * bound < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    torch.testing.assert_close(layer.bias, bias)
