"""The fused network against the same layer by layer, which autograd differentiates."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet import layers
from lenet.data.module import Batch
from lenet.fast import fused as fused_module
from lenet.fast import kernels
from lenet.fast.fused import Fused, fused
from lenet.fast.kernels.compiler import UnavailableError
from lenet.models.lenet import LeNet, NormalizedLeNet, xavier_uniform_
from lenet.training.module import Classifier
from lenet.training.tally import Tally

pytestmark = pytest.mark.compiled

ACTIVATIONS, POOLINGS = (nn.Sigmoid, nn.ReLU), (nn.AvgPool2d, nn.MaxPool2d)


def lenet(pool: type[nn.Module] = nn.AvgPool2d, activation: type[nn.Module] = nn.Sigmoid) -> LeNet:
    torch.manual_seed(0)
    net = LeNet(pool=pool, activation=activation)
    xavier_uniform_(net)
    return net


def normalized(activation: type[nn.Module] = nn.GELU) -> NormalizedLeNet:
    torch.manual_seed(0)
    net = NormalizedLeNet(activation=activation)
    xavier_uniform_(net)
    return net


def gradients(logits: Tensor, labels: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(net.parameters())))


def assert_same(net: LeNet | NormalizedLeNet, images: Tensor) -> None:
    """As exact as single precision allows: by what a network in double precision has."""
    labels = torch.randint(10, (len(images),), generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(net).double()
    logits, expected = Fused(net)(images), exact(images.double())
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    names = dict(net.named_parameters())
    pairs = zip(names, gradients(logits, labels, net), gradients(expected, labels, exact), strict=True)
    for name, ours, theirs in pairs:
        # A bias just before a normalisation has no effect, so that its gradient is nothing but rounding.
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max() + 1e-5, name


@pytest.mark.parametrize("pool", POOLINGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_and_gradients_are_those_of_the_layers(
    pool: type[nn.Module], activation: type[nn.Module], count: int, channels_last: bool
) -> None:
    net = lenet(pool, activation)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    assert_same(net, torch.rand(count, 1, 28, 28))


@pytest.mark.parametrize("activation", [nn.ELU, nn.GELU, nn.ReLU], ids=lambda kind: kind.__name__)
def test_with_batch_normalisation(activation: type[nn.Module]) -> None:
    assert_same(normalized(activation), torch.rand(64, 1, 28, 28))


def test_running_statistics_are_kept() -> None:
    net, images = normalized(), torch.rand(64, 1, 28, 28)
    other = copy.deepcopy(net)
    Fused(net)(images)
    other(images)
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(Fused(net.eval())(images), other.eval()(images))


def test_a_normalisation_never_sees_what_fills_up_a_group() -> None:
    net = normalized()
    plan = Fused(net)
    odd = torch.rand(kernels.load().lanes + 1, 1, 28, 28)
    assert not plan.fits(odd)
    assert plan.fits(odd[1:])
    net.eval()
    assert plan.fits(odd)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None  # it then looks at the batch in evaluation too
    assert not plan.fits(odd)
    assert Fused(lenet()).fits(odd)


def test_bytes_are_images_too() -> None:
    images = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    plan = Fused(lenet())
    assert torch.equal(plan(images), plan(images.float() / 255))


@pytest.mark.parametrize("pool", POOLINGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_the_training_step_of_a_lenet(two_threads: None, pool: type[nn.Module], activation: type[nn.Module]) -> None:
    net, labels = lenet(pool, activation), torch.randint(10, (37,))
    images = torch.randint(256, (37, 1, 28, 28), dtype=torch.uint8)
    exact = copy.deepcopy(net).double()
    expected = exact(images.double() / 255)
    plan = Fused(net)
    for scale in (1 / 37, 1.0):  # the second step replaces what the first left
        assert plan.trains(images)
        loss, logits = plan.training_step(images, labels, scale)
        sum_of_losses = F.cross_entropy(expected, labels, reduction="sum")
        torch.testing.assert_close(loss.double(), sum_of_losses, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        theirs = torch.autograd.grad(sum_of_losses * scale, list(exact.parameters()), retain_graph=True)
        for (name, parameter), gradient in zip(net.named_parameters(), theirs, strict=True):
            assert parameter.grad is not None
            assert (parameter.grad - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


def test_what_has_no_training_step_of_its_own() -> None:
    images = torch.rand(64, 1, 28, 28)
    different = lenet()
    different[-1] = nn.Linear(84, 12)
    mixed = lenet()
    mixed[4] = nn.ReLU()
    frozen = lenet()
    frozen.get_parameter("fc1.bias").requires_grad_(False)
    for net in (different, mixed, frozen, normalized()):
        plan = Fused(net)
        assert plan.fits(images)
        assert not plan.trains(images)
        if net is not frozen:
            assert_same(net, images)
    assert Fused(lenet()).trains(images)
    assert not Fused(lenet()).trains(images.double())


def test_a_parameter_that_is_not_trained_gets_no_gradient() -> None:
    net, images, labels = lenet(), torch.rand(5, 1, 28, 28), torch.arange(5)
    for name in ("conv2.weight", "conv1.bias", "fc1.weight"):
        net.get_parameter(name).requires_grad_(False)
    other = copy.deepcopy(net)
    F.cross_entropy(Fused(net)(images), labels).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(other(images), labels).backward()  # type: ignore[no-untyped-call]
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert net.get_parameter("conv2.weight").grad is None


def test_parameters_replaced_by_a_move_are_found() -> None:
    net, images = lenet(), torch.rand(2, 1, 28, 28)
    plan = Fused(net)
    for name in ("conv1", "fc1"):
        layer = net.get_submodule(name)
        layer.weight = nn.Parameter(-net.get_parameter(f"{name}.weight").detach())
    expected = net(images)
    torch.testing.assert_close(plan(images), expected)
    _, logits = plan.training_step(images, torch.zeros(2, dtype=torch.int64), 1.0)
    torch.testing.assert_close(logits, expected)


def test_a_layer_that_stands_in_several_places() -> None:
    activation, images = nn.Sigmoid(), torch.rand(2, 1, 28, 28)
    net = LeNet(activation=lambda: activation)
    plan = Fused(net)
    torch.testing.assert_close(plan(images), net(images))
    _, logits = plan.training_step(images, torch.zeros(2, dtype=torch.int64), 1.0)
    torch.testing.assert_close(logits, net(images))


def test_the_images_need_not_be_contiguous() -> None:
    net = lenet()
    images = torch.rand(1, 28, 28, 4).permute(3, 0, 1, 2)
    torch.testing.assert_close(Fused(net)(images), net(images))


def test_a_graph_that_is_retained_goes_backward_again() -> None:
    net = lenet()
    loss = Fused(net)(torch.rand(2, 1, 28, 28)).sum()
    first, second = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_parameter_changed_before_the_backward_is_noticed() -> None:
    net = lenet()
    loss = Fused(net)(torch.rand(2, 1, 28, 28)).sum()
    with torch.no_grad():
        net.get_parameter("conv2.weight").mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_without_a_backward_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, kept = kernels.load(), list[weakref.ref[Tensor]]()
    pack = compiled.pack

    def watched(images: Tensor) -> Tensor:
        groups = pack(images)
        kept.append(weakref.ref(groups))
        return groups

    monkeypatch.setattr(compiled, "pack", watched)
    logits = Fused(lenet())(torch.rand(2, 1, 28, 28))
    assert kept[0]() is not None  # for the backward
    del logits
    gc.collect()
    assert kept[0]() is None


def test_a_layer_that_is_listened_to_is_called() -> None:
    net, images = lenet(), torch.rand(2, 1, 28, 28)
    plan = Fused(net)
    for layer in (net, net[0], net[-1]):
        for listen in (
            layer.register_forward_hook,
            layer.register_forward_pre_hook,
            layer.register_full_backward_hook,
            layer.register_full_backward_pre_hook,
        ):
            listener = listen(lambda *_: None)
            assert not plan.fits(images)
            listener.remove()
            assert plan.fits(images)


def test_who_listens_to_a_gradient_has_autograd() -> None:
    net, images = lenet(), torch.rand(2, 1, 28, 28)
    plan, weight = Fused(net), net.get_parameter("fc1.weight")
    for listen in (weight.register_hook, weight.register_post_accumulate_grad_hook):
        listener = listen(lambda *_: None)  # type: ignore[no-untyped-call]
        assert plan.fits(images)
        assert not plan.trains(images)
        listener.remove()
        assert plan.trains(images)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert not plan.trains(images)


def test_a_network_that_is_traced_is_recorded_layer_by_layer() -> None:
    net, images = lenet().requires_grad_(False), torch.rand(2, 1, 28, 28)
    module = Classifier(net, partial(torch.optim.SGD, lr=0.1))
    traced = torch.jit.trace(lambda images: module(images), images)  # type: ignore[no-untyped-call]
    other = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(traced(other), net(other))


def test_weights_that_c_would_misread_are_not_its() -> None:
    images = torch.rand(2, 1, 28, 28)
    for name in ("conv1.weight", "conv2.bias", "fc2.weight"):
        net = lenet()
        layer, _, kind = name.partition(".")
        setattr(net.get_submodule(layer), kind, nn.Parameter(net.get_parameter(name).double()))
        assert not Fused(net).trains(images)
        assert Fused(net).fits(images) == (layer == "fc2")
    assert not Fused(lenet().to("meta")).fits(images)


def test_a_training_step_with_channels_last_weights() -> None:
    net, other = lenet(), lenet()
    module = Classifier(net.to(memory_format=torch.channels_last), partial(torch.optim.SGD, lr=0.1))
    images, labels = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8), torch.arange(9)
    module.compute_gradients(Batch(images, labels, 9, "train"), Tally(), module.optimizer_factory(module.parameters()))
    F.cross_entropy(other(images / 255), labels).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_other_networks_are_not_fused() -> None:
    assert fused(nn.Linear(784, 10)) is None
    assert fused(nn.Sequential()) is None
    assert fused(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))) is None
    assert fused(nn.Sequential(*list(lenet().children())[:6])) is None
    assert fused(LeNet(conv=partial(layers.Conv2d, algorithm="im2col"))) is None
    assert fused(LeNet(activation=nn.Tanh)) is None
    assert fused(LeNet(activation=partial(nn.ReLU, inplace=True))) is None
    assert fused(NormalizedLeNet(activation=partial(nn.ELU, inplace=True))) is None
    assert fused(LeNet(conv=partial(nn.Conv2d, padding_mode="circular"))) is None
    for pool in (partial(nn.AvgPool2d, stride=1), partial(nn.AvgPool2d, divisor_override=3)):
        assert fused(LeNet(pool=pool)) is None


def test_looking_whether_a_network_can_be_fused_draws_no_random_numbers() -> None:
    net = lenet()
    state = torch.get_rng_state()
    assert fused(net) is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_what_fits() -> None:
    plan, images = Fused(lenet()), torch.rand(2, 1, 28, 28)
    assert plan.fits(images)
    assert plan.fits(images.byte())
    assert not plan.fits(images.double())
    assert not plan.fits(torch.rand(2, 1, 32, 32))
    assert not plan.fits(torch.rand(2, 1, 28, 28, requires_grad=True))
    assert not plan.fits(torch.empty(2, 1, 28, 28, device="meta"))
    with torch.autocast("cpu"):
        assert not plan.fits(images)
    plan.net.double()
    assert not plan.fits(images)


def test_without_a_compiler_the_user_hears_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable() -> None:
        raise UnavailableError("there is no gcc on this machine")

    monkeypatch.setattr(fused_module, "load", unavailable)
    with caplog.at_level(logging.WARNING):
        assert fused(lenet()) is None
    assert [record.getMessage() for record in caplog.records] == [
        "fuse=true: there is no gcc on this machine; what could be compiled is computed layer by layer, which is slower"
    ]
