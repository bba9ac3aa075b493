"""The layers benchmark: our layers with each algorithm, and PyTorch's (`builtin`), in turn."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lenet import layers
from lenet.benchmarks.contenders import train_plainly
from lenet.benchmarks.train import machine, order_of_round, ratios, spread
from lenet.fast.memory import keep_freed_memory
from lenet.layers.functional import ALGORITHMS
from lenet.models import LeNet, xavier_uniform_

BATCH_SIZE = 256
BUILTIN = "builtin"
CONTENDERS = (BUILTIN, *ALGORITHMS)

Call = Callable[[], object]
Times = dict[str, dict[str, list[float]]]
"""Seconds, by operation, contender and round."""


def compare(rounds: int, batch_size: int = BATCH_SIZE) -> Times:
    """Measure all operations of all contenders in `rounds` rounds."""
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    contenders = {name: operations(name, images, labels) for name in CONTENDERS}
    times: Times = {operation: {name: [] for name in CONTENDERS} for operation in contenders[BUILTIN]}
    for number in range(rounds):
        for operation, seconds in times.items():
            for name in order_of_round(CONTENDERS, number):
                call = contenders[name][operation]
                call()
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        print(f"round {number + 1} of {rounds}", flush=True)
    return times


def operations(name: str, images: Tensor, labels: Tensor) -> dict[str, Call]:
    """What is measured of one contender."""

    def layer(kind: str) -> Callable[..., nn.Module]:
        return getattr(nn, kind) if name == BUILTIN else partial(getattr(layers, kind), algorithm=name)

    torch.manual_seed(0)
    net = LeNet(conv=layer("Conv2d"), pool=layer("AvgPool2d")).to(memory_format=torch.channels_last)
    xavier_uniform_(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    calls: dict[str, Call] = {"training step": partial(train_plainly, net, optimizer, images, labels)}
    values = images
    for stage, module in net.named_children():
        if stage.startswith(("conv", "pool")):
            calls[stage] = forward_and_backward(module, values)
        if stage.startswith("pool"):
            calls[f"{stage} max"] = forward_and_backward(layer("MaxPool2d")(kernel_size=2), values)
        values = module(values).detach().requires_grad_()
    return calls


def forward_and_backward(layer: nn.Module, values: Tensor) -> Call:
    """A call that computes the output, and the gradients of the parameters and, if it needs one, of the input."""
    needed = [tensor for tensor in (values, *layer.parameters()) if tensor.requires_grad]
    gradient = torch.ones_like(layer(values))
    return lambda: torch.autograd.grad(layer(values), needed, gradient)


def report(times: Times) -> str:
    """A table: the time of each operation and contender, as a multiple of `builtin` in the same round."""
    rounds = len(next(iter(times.values()))[BUILTIN])
    lines = [f"Median (lowest–highest) of {rounds} rounds on {machine()}; batches of {BATCH_SIZE} images"]
    lines.append(f"{'operation':<15}{'layers':<15}{'× builtin':<22}{'median ms':>10}")
    for operation, contenders in times.items():
        for name, seconds in contenders.items():
            ratio = "" if name == BUILTIN else spread(ratios(seconds, contenders[BUILTIN]), ".2f")
            lines.append(f"{operation:<15}{name:<15}{ratio:<22}{1000 * statistics.median(seconds):>10.2f}")
    return "\n".join(lines)
