import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lenet.classes import build
from lenet.errors import UserError
from lenet.layers import Conv2d
from lenet.models import LeNet, init_weights_
from lenet.models.lenet import INITS

normalized = partial(
    LeNet, pool=nn.MaxPool2d, activation=nn.GELU, norm=nn.BatchNorm2d, hidden_norm=nn.BatchNorm1d
)  # conf/model/lenet_norm.yaml


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts() -> None:
    assert (parameters(LeNet()), parameters(normalized())) == (61_706, 62_158)


def test_forward_equals_the_formula() -> None:
    net, images = LeNet(), torch.rand(3, 1, 28, 28)
    p = dict(net.named_parameters())
    x = F.avg_pool2d(torch.sigmoid(F.conv2d(images, p["conv1.weight"], p["conv1.bias"], padding=2)), 2)
    x = F.avg_pool2d(torch.sigmoid(F.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2).flatten(1)
    x = torch.sigmoid(x @ p["fc1.weight"].T + p["fc1.bias"])
    x = torch.sigmoid(x @ p["fc2.weight"].T + p["fc2.bias"])
    torch.testing.assert_close(net(images), x @ p["fc3.weight"].T + p["fc3.bias"])


def test_a_kernel_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.kernel_size=20.* 13 or less"):
        LeNet(kernel_size=20)


def test_dropout_comes_before_the_second_and_each_later_linear_layer() -> None:
    names = [name for name, _ in LeNet(dropout=0.2).named_children()]
    assert [names[names.index(drop) + 1] for drop in ("drop1", "drop2")] == ["fc2", "fc3"]
    assert not any(isinstance(layer, nn.Dropout) for layer in LeNet())


VARIANTS: dict[str, partial[LeNet]] = {
    "published": partial(LeNet),
    "normalised": normalized,
    "others": partial(LeNet, channels=(4, 8), kernel_size=3, hidden=[30], activation=nn.Tanh, dropout=0.5, classes=7),
    "arguments of layers": partial(LeNet, norm=partial(nn.BatchNorm2d, momentum=0.3), conv=Conv2d),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_network_can_be_made_from_its_description(variant: str) -> None:
    net = VARIANTS[variant]()
    assert net.description is not None
    assert repr(build("model", net.description)) == repr(net)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [(nn.Conv2d(6, 16, 5), 6 * 25, 16 * 25), (nn.Linear(400, 120), 400, 120)],
    ids=["convolution", "linear"],
)
def test_xavier_fills_the_published_range_and_leaves_biases(
    layer: nn.Conv2d | nn.Linear, fan_in: int, fan_out: int
) -> None:
    assert layer.bias is not None
    bias = layer.bias.clone()
    init_weights_(layer)
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max().item() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    torch.testing.assert_close(layer.bias, bias)


@pytest.mark.parametrize("init", INITS)
def test_each_way_to_draw_initial_weights_leaves_biases(init: str) -> None:
    net = LeNet()
    before = copy.deepcopy(net.state_dict())
    init_weights_(net, init)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == (set() if init == "none" else {name for name in before if name.endswith("weight")})


def test_another_way_is_refused() -> None:
    with pytest.raises(UserError, match=r"init=zeros: .*xavier_uniform.*none"):
        init_weights_(LeNet(), "zeros")


def test_orthogonal_weights_have_rows_at_right_angles() -> None:
    layer = nn.Conv2d(6, 16, 5)
    init_weights_(layer, "orthogonal")
    rows = layer.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16))


def test_some_of_its_layers_are_a_network_too() -> None:
    net, images = LeNet(), torch.rand(2, 1, 28, 28)
    assert net[:3](images).shape == (2, 6, 14, 14)
    assert torch.equal(net[3:](net[:3](images)), net(images))
    assert net[-1] is net.fc3


def test_an_activation_right_after_the_convolutions_stands_beside_that_after_the_normalisation() -> None:
    net = LeNet(norm=nn.BatchNorm2d, activation=nn.SiLU, conv_activation=nn.ReLU)
    assert [type(layer) for layer in list(net)[:5]] == [nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.BatchNorm2d, nn.SiLU]
    assert [type(layer) for layer in list(LeNet(conv_activation=nn.ReLU))[1:12:4]] == [nn.ReLU, nn.AvgPool2d, nn.Linear]
