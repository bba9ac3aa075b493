"""The fused network against the same layer by layer, which autograd differentiates."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet import layers
from lenet.fused import Fused, fused
from lenet.model import LeNet, xavier_uniform_

ACTIVATIONS, POOLINGS = (nn.Sigmoid, nn.ReLU), (nn.AvgPool2d, nn.MaxPool2d)


def lenet(pool: type[nn.Module] = nn.AvgPool2d, activation: type[nn.Module] = nn.Sigmoid) -> LeNet:
    torch.manual_seed(0)
    net = LeNet(pool=pool, activation=activation)
    xavier_uniform_(net)
    return net


def gradients(logits: Tensor, labels: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(net.parameters())))


@pytest.mark.parametrize("pool", POOLINGS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_and_gradients_are_those_of_the_layers(
    pool: type[nn.Module], activation: type[nn.Module], count: int, channels_last: bool
) -> None:
    # In double precision, so that nothing but the formulas can differ.
    net = lenet(pool, activation).double()
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    images, labels = torch.rand(count, 1, 28, 28, dtype=torch.float64), torch.randint(10, (count,))
    logits, expected = Fused(net)(images), net(images)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients(logits, labels, net), gradients(expected, labels, net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_of_equal_values_in_a_window_the_first_gets_the_gradient(activation: type[nn.Module]) -> None:
    net = lenet(nn.MaxPool2d, activation).double()
    images, labels = torch.ones(3, 1, 28, 28, dtype=torch.float64), torch.tensor([1, 2, 3])
    ours, theirs = (gradients(logits, labels, net) for logits in (Fused(net)(images), net(images)))
    # Gradients differ by where in a window of equal values they flow to: into which weights of the first kernel.
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_single_precision(subtests: pytest.Subtests) -> None:
    for pool in POOLINGS:
        with subtests.test(pool=pool.__name__):
            net, labels = lenet(pool), torch.randint(10, (256,))
            images = torch.rand(256, 1, 28, 28)
            exact = copy.deepcopy(net).double()
            expected = gradients(exact(images.double()), labels, exact)
            for ours, theirs in zip(gradients(Fused(net)(images), labels, net), expected, strict=True):
                assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_under_autocast_it_computes_in_half_precision(subtests: pytest.Subtests) -> None:
    net, labels, images = lenet(), torch.randint(10, (256,)), torch.rand(256, 1, 28, 28)
    with torch.autocast("cpu"):
        logits = Fused(net)(images)
    assert logits.dtype == torch.float32
    for name, ours, theirs in zip(
        dict(net.named_parameters()), gradients(logits, labels, net), gradients(net(images), labels, net), strict=True
    ):
        with subtests.test(parameter=name):
            assert ours.dtype == torch.float32
            difference = (ours - theirs).norm() / theirs.norm()
            assert 1e-4 < difference < 0.05  # eight bits of each number


def test_parameters_replaced_by_a_move_are_found() -> None:
    net = lenet()
    plan = Fused(net)
    net[-1].bias = nn.Parameter(torch.full((10,), 100.0))
    assert plan(torch.rand(2, 1, 28, 28)).min() > 50


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
        net.get_parameter("fc3.weight").mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_without_a_backward_nothing_is_kept() -> None:
    images = torch.rand(2, 1, 28, 28)
    kept = weakref.ref(images)
    logits = Fused(lenet())(images)
    del images
    assert kept() is not None  # for the backward
    del logits
    gc.collect()
    assert kept() is None


def test_a_layer_that_is_listened_to_is_called() -> None:
    net, images = lenet(), torch.rand(2, 1, 28, 28)
    plan = Fused(net)
    listener = net[0].register_forward_hook(lambda *_: None)
    assert not plan.fits(images)
    listener.remove()
    assert plan.fits(images)


def test_other_networks_are_not_fused() -> None:
    assert fused(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))) is None
    assert fused(LeNet(conv=partial(layers.Conv2d, algorithm="im2col"))) is None
    assert fused(LeNet(activation=nn.Tanh)) is None
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
    assert not plan.fits(images.double())
    assert not plan.fits(torch.rand(2, 1, 32, 32))
    assert not plan.fits(torch.rand(2, 1, 28, 28, requires_grad=True))
    assert not plan.fits(torch.empty(2, 1, 28, 28, device="meta"))
