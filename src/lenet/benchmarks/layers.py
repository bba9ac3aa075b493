"""The layers benchmark: our layers with each algorithm, and PyTorch's (`builtin`)."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lenet import layers
from lenet.benchmarks.contenders import train_plainly
from lenet.benchmarks.in_turn import Tasks
from lenet.fast.memory import keep_freed_memory
from lenet.layers.functional import ALGORITHMS
from lenet.models import LeNet, init_weights_

BUILTIN = "builtin"


def tasks(batch_size: int = 256) -> Tasks:
    """The operations to time, by operation and contender."""
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    contenders = {name: operations(name, images, labels) for name in (BUILTIN, *ALGORITHMS)}
    return {
        operation: {name: partial(milliseconds, calls[operation]) for name, calls in contenders.items()}
        for operation in contenders[BUILTIN]
    }


def milliseconds(call: Callable[[], object]) -> float:
    """The time of the second of two calls."""
    call()
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def operations(name: str, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    """What is measured of one contender."""

    def layer(kind: str) -> Callable[..., nn.Module]:
        return getattr(nn, kind) if name == BUILTIN else partial(getattr(layers, kind), algorithm=name)

    torch.manual_seed(0)
    net = LeNet(conv=layer("Conv2d"), pool=layer("AvgPool2d")).to(memory_format=torch.channels_last)
    init_weights_(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    calls: dict[str, Callable[[], object]] = {"training step": partial(train_plainly, net, optimizer, images, labels)}
    values = images
    for stage, module in net.named_children():
        if stage.startswith(("conv", "pool")):
            calls[stage] = forward_and_backward(module, values)
        if stage.startswith("pool"):
            calls[f"{stage} max"] = forward_and_backward(layer("MaxPool2d")(kernel_size=2), values)
        values = module(values).detach().requires_grad_()
    return calls


def forward_and_backward(layer: nn.Module, values: Tensor) -> Callable[[], object]:
    """A call that computes the output, and the gradients of the parameters and, if it needs one, of the input."""
    needed = [tensor for tensor in (values, *layer.parameters()) if tensor.requires_grad]
    gradient = torch.ones_like(layer(values))
    return lambda: torch.autograd.grad(layer(values), needed, gradient)
