"""The layers under what rewrites a program: torch.compile, torch.export and torch.func."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lenet.layers import AvgPool2d, Conv2d, ConvTranspose2d, MaxPool2d
from tests.layers.cases import assert_close, each_algorithm

IMAGES = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def network(algorithm: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Conv2d(2, 4, 3, stride=2, padding=1, groups=2, algorithm=algorithm),
        MaxPool2d(3, stride=1, padding=1),
        ConvTranspose2d(4, 2, 3, algorithm=algorithm),
        AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(18, 1),
    )


def loss(net: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    result: Tensor = functional_call(net, dict(parameters), (images,)).sigmoid().mean()
    return result


def plain_gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    parameters = dict(net.named_parameters())
    return list(torch.autograd.grad(loss(net, parameters, images), list(parameters.values())))


def detached(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.long
@each_algorithm
def test_compiled_as_one_graph_they_give_the_same_values_and_gradients(algorithm: str) -> None:
    net = network(algorithm)
    torch.compiler.reset()
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(compiled(IMAGES), net(IMAGES), 1e-5)
    for ours, expected in zip(plain_gradients(compiled, IMAGES), plain_gradients(net, IMAGES), strict=True):
        assert_close(ours, expected, 1e-5)


@pytest.mark.long
@each_algorithm
def test_exported_with_a_dynamic_batch_they_give_the_same_values(algorithm: str) -> None:
    net = network(algorithm)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (IMAGES,), dynamic_shapes=shapes).module()
    for count in (1, 7):
        images = torch.rand(count, 2, 6, 6)
        assert_close(program(images), net(images), 1e-5)


@each_algorithm
def test_torch_func_differentiates_them(algorithm: str) -> None:
    net = network(algorithm)
    gradients = grad(partial(loss, net))(detached(net), IMAGES)
    for ours, expected in zip(gradients.values(), plain_gradients(net, IMAGES), strict=True):
        assert_close(ours, expected, 1e-5)


@each_algorithm
def test_torch_func_differentiates_a_head_on_layers_that_are_fixed(algorithm: str) -> None:
    net = network(algorithm)
    fixed = detached(net)
    head = {"5.weight": fixed.pop("5.weight")}

    def loss_of_head(trained: dict[str, Tensor]) -> Tensor:
        return loss(net, {**fixed, **trained}, IMAGES)

    assert_close(grad(loss_of_head)(head)["5.weight"], plain_gradients(net, IMAGES)[-2], 1e-5)


@each_algorithm
def test_gradients_of_each_image_average_to_that_of_the_batch(algorithm: str) -> None:
    net = network(algorithm)

    def loss_of_one(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(net, parameters, image[None])

    gradients = vmap(grad(loss_of_one), in_dims=(None, 0))(detached(net), IMAGES)
    for each, expected in zip(gradients.values(), plain_gradients(net, IMAGES), strict=True):
        assert each.shape == (3, *expected.shape)
        assert_close(each.mean(dim=0), expected, 1e-5)


@each_algorithm
def test_vmap_computes_several_networks_at_once(algorithm: str) -> None:
    nets = [network(algorithm), network(algorithm)]
    for parameter in nets[1].parameters():
        nn.init.normal_(parameter)
    stacked = {name: torch.stack([detached(net)[name] for net in nets]) for name in detached(nets[0])}
    outputs = vmap(partial(functional_call, nets[0]), in_dims=(0, None))(stacked, (IMAGES,))
    for net, output in zip(nets, outputs, strict=True):
        assert_close(output, net(IMAGES), 1e-5)


def test_max_pooling_decides_ties_and_nan_as_without() -> None:
    images = torch.tensor([[1.0, 1.0, 0.0, -torch.inf], [1.0, 0.0, torch.nan, torch.nan]])[None, None]

    def total(values: Tensor) -> Tensor:
        return MaxPool2d(2, padding=1)(values).sum()  # type: ignore[no-any-return]

    leaf = images.clone().requires_grad_()
    (ours,) = torch.autograd.grad(total(leaf), leaf)
    (expected,) = torch.autograd.grad(nn.functional.max_pool2d(leaf, 2, padding=1).sum(), leaf)
    assert torch.equal(ours, expected)
    assert torch.equal(grad(total)(images), expected)
