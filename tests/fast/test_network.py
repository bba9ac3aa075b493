"""Compiled networks against the same networks layer by layer."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lenet.fast import CompiledNetwork, UnsuitableError
from lenet.fast.kernels import lanes
from lenet.layers import Conv2d
from lenet.models import LeNet, init_weights_

pytestmark = pytest.mark.compiled

RELU, MAXIMUM = {"activation": partial(nn.ReLU, inplace=True)}, {"pool": nn.MaxPool2d}
NORM = {"activation": nn.GELU, "pool": nn.MaxPool2d, "norm": nn.BatchNorm2d, "hidden_norm": nn.BatchNorm1d}


def lenet(**arguments: Any) -> LeNet:
    net = LeNet(**arguments)
    init_weights_(net)
    return net


def batch(count: int) -> tuple[Tensor, Tensor]:
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (count,))


def assert_same(net: nn.Module, count: int = 64) -> None:
    """Logits, loss and gradients as exact as single precision allows: compared with a copy in double precision."""
    exact, (images, labels) = copy.deepcopy(net).double(), batch(count)
    plan = CompiledNetwork(net)
    assert plan.accepts(images)
    assert plan.is_current()
    seed = torch.get_rng_state()
    expected = exact(images.double() / 255)
    loss = F.cross_entropy(expected, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.set_rng_state(seed)
    logits = plan(images)
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.double(), expected, rtol=2e-5, atol=2e-5)
    assert_same_gradients(net, exact)
    for ours, theirs in zip(net.buffers(), exact.buffers(), strict=True):  # running statistics
        torch.testing.assert_close(ours, theirs, check_dtype=False)
    if plan.is_whole:
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        summed, logits = plan.gradients(images, labels, 1 / count)
        torch.testing.assert_close(summed.double(), loss.detach() * count, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(logits.double(), expected.detach(), rtol=2e-5, atol=2e-5)
        assert_same_gradients(net, exact)


def assert_same_gradients(net: nn.Module, exact: nn.Module) -> None:
    for (name, parameter), other in zip(net.named_parameters(), exact.parameters(), strict=True):
        if parameter.grad is None or other.grad is None:
            assert not parameter.requires_grad, name
            continue
        # A bias just before a normalisation has no effect, so that its gradient is nothing but rounding.
        assert (parameter.grad - other.grad).abs().max() < 5e-5 * other.grad.abs().max() + 1e-5, name


@pytest.mark.parametrize("arguments", [{}, RELU, MAXIMUM, {"activation": nn.ReLU} | MAXIMUM])
def test_a_lenet_is_compiled_as_a_whole(width: int, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # however the suite is run
    net = lenet(**arguments)
    assert CompiledNetwork(net).is_whole
    assert_same(net, 7)


@pytest.mark.parametrize("library", [4], indirect=True)
def test_more_groups_than_are_copied_side_by_side(width: int) -> None:
    assert_same(lenet(), 32 * width + 3)


@pytest.mark.parametrize("arguments", [NORM, NORM | {"activation": nn.ReLU}, {"hidden": (100,)}, {"dropout": 0.5}])
def test_a_lenet_with_other_layers_is_compiled_in_part(width: int, arguments: dict[str, Any]) -> None:
    net = lenet(**arguments)
    assert not CompiledNetwork(net).is_whole
    assert_same(net)


def test_a_normalisation_never_sees_what_fills_up_a_group() -> None:
    net = lenet(**NORM)
    plan, odd = CompiledNetwork(net), torch.rand(lanes() + 1, 1, 28, 28)
    assert not plan.accepts(odd)
    assert plan.accepts(odd[1:])
    net.eval()
    assert plan.accepts(odd)
    torch.testing.assert_close(plan(odd), net(odd))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None  # it then looks at the batch in evaluation, too
    assert not plan.accepts(odd)


class Rectified(LeNet):
    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images)


Edit = Callable[[Any], object]


def edited(path: str, value: Any) -> Edit:
    """Replaces a layer of a network, or an attribute of a layer."""
    layer, _, attribute = path.rpartition(".")
    return lambda net: setattr(net.get_submodule(layer), attribute, value)


REFUSED: dict[str, Edit] = {
    "another width": edited("conv1", nn.Conv2d(1, 10, 5, padding=2)),
    "another activation": edited("act1", nn.Tanh()),
    "another pooling": edited("pool1", nn.AdaptiveAvgPool2d(14)),
    "another stride": edited("conv2.stride", (1, 2)),
    "another stride of a pooling": edited("pool1.stride", 1),
    "no second convolution": lambda net: delattr(net, "conv2"),
    "no bias": edited("conv1.bias", None),
    "another padding mode": edited("conv1.padding_mode", "circular"),
    "another weight": edited("conv2.weight", nn.Parameter(torch.rand(16, 6, 3, 3))),
    "double precision": lambda net: net.conv1.double(),
    "another device": lambda net: net.conv1.to("meta"),
    "a convolution of one's own": edited("conv1", Conv2d(1, 6, 5, padding=2)),
    "a forward of the network's own": edited("__class__", Rectified),
    "a forward of a layer's own": edited("act1.forward", torch.tanh),
    "a network that is no Sequential": edited("__class__", nn.ModuleList),
    "a hook": lambda net: net.fc2.register_forward_hook(lambda *_: None),
    "a hook before a layer": lambda net: net.act1.register_forward_pre_hook(lambda *_: None),
    "a hook of a gradient": lambda net: net.fc1.weight.register_hook(lambda gradient: 2 * gradient),
    "a hook after a gradient": lambda net: net.fc1.bias.register_post_accumulate_grad_hook(lambda *_: None),
    "a parametrization": lambda net: parametrizations.weight_norm(net.conv2),
}

COMPUTED: dict[str, Edit] = {
    "a new convolution": edited("conv1", nn.Conv2d(1, 6, 5, padding=2)),
    "a new linear layer": edited("fc2", nn.Linear(120, 84)),
    "another activation in one block": edited("act2", nn.ReLU()),
    "another activation in the head": edited("act4", nn.Tanh()),
    "no activation in one block": lambda net: delattr(net, "act1"),
    "other classes": edited("fc3", nn.Linear(84, 12)),
    "frozen parameters": lambda net: [layer.requires_grad_(False) for layer in (net.conv1, net.conv2.weight, net.fc1)],
    "a layer in several places": lambda net: net.append(net.act1),
    "layers after the convolutions": edited("flatten", nn.Sequential(nn.Softsign(), nn.Flatten())),
    "channels last": lambda net: net.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_edit_that_the_kernels_do_not_know_is_noticed_and_refused(name: str) -> None:
    net = lenet()
    plan = CompiledNetwork(net)
    REFUSED[name](net)
    assert not plan.is_current()
    with pytest.raises(UnsuitableError, match=r"kernels|needs a weight|plain nn\.Sequential"):
        CompiledNetwork(net)


@pytest.mark.parametrize("name", COMPUTED)
def test_an_edit_is_noticed_and_has_its_own_loss_and_gradients(name: str) -> None:
    net = lenet()
    plan = CompiledNetwork(net)
    COMPUTED[name](net)
    assert not plan.is_current()
    assert_same(net)


@pytest.mark.parametrize("weight", [torch.rand(120, 399), torch.rand(121, 400), torch.ones(120, 400) > 0])
def test_a_weight_that_c_would_misread_is_refused_by_the_step(weight: Tensor) -> None:
    net = lenet()
    plan = CompiledNetwork(net)
    plan.gradients(*batch(5), 1.0)  # from now on, what C gets is prepared
    net.get_submodule("fc1").weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ValueError, match=r"C cannot read|sizes"):
        plan.gradients(*batch(5), 1.0)


def test_the_step_needs_a_whole_lenet_and_a_label_for_each_image() -> None:
    images, labels = batch(5)
    for net, given in ((lenet(dropout=0.1), labels), (lenet(), labels[1:])):
        with pytest.raises(ValueError, match="C needs"):
            CompiledNetwork(net).gradients(images, given, 1.0)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_a_label_out_of_range_is_an_error_and_leaves_gradients_alone(label: int) -> None:
    net, (images, labels) = lenet(), batch(20)
    labels[17] = label
    with pytest.raises(IndexError, match="0 to 9"):
        CompiledNetwork(net).gradients(images, labels, 1.0)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_parameter_changed_before_the_backward_is_noticed() -> None:
    net = lenet()
    loss = CompiledNetwork(net)(torch.rand(2, 1, 28, 28)).sum()
    with torch.no_grad():
        net.get_parameter("conv2.weight").mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_images_that_do_not_fit() -> None:
    plan, images = CompiledNetwork(lenet()), torch.rand(2, 1, 28, 28)
    assert plan.accepts(images)
    assert plan.accepts(images.byte())
    assert not plan.accepts(images.double())
    assert not plan.accepts(torch.rand(2, 1, 32, 32))
    assert not plan.accepts(torch.rand(2, 1, 28, 28, requires_grad=True))
    assert not plan.accepts(torch.empty(2, 1, 28, 28, device="meta"))
    with torch.autocast("cpu"):
        assert not plan.accepts(images)
    with torch.autograd.set_detect_anomaly(True):
        assert not plan.accepts(images)
