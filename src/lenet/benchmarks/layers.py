"""How fast are our layers, as a multiple of the time that PyTorch's own need in the same run?

    python scripts/benchmark.py layers --rounds 15

Measured are LeNet's two convolutions and two poolings, and a whole training step of it, with a batch of 256 images.
The contenders are LeNets that differ in their layers alone: PyTorch's (`builtin`), and ours with each algorithm. Layers
are timed on the tensors that they meet in their own LeNet: input, weights and the output's gradient are recorded during
one training step, values and memory layout alike. The backward computes what training needs: no gradient for images.

Each contender takes its turn in each round, once to warm up and once for the clock. A ratio is that of one round.
Peak extra memory is what a forward and backward pass takes at most beyond what was there before it, output included, as
PyTorch's allocator counts it; buffers that oneDNN or MKL allocate for themselves are not seen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lenet import layers
from lenet.benchmarks.report import heading, ratios, spread
from lenet.layers.functional import ALGORITHMS
from lenet.memory import keep_freed_memory
from lenet.model import LeNet, xavier_uniform_

BATCH_SIZE = 256
STEP = "training step"

Key = tuple[str, str, str]
"""(operation, pass, contender): ("conv1", "forward", "im2col")."""


@dataclass
class Figures:
    """What was measured: seconds in each round, and bytes."""

    seconds: dict[Key, list[float]] = field(default_factory=dict)
    memory: dict[tuple[str, str], int] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        return {
            "seconds": {" / ".join(key): values for key, values in self.seconds.items()},
            "peak_extra_bytes": {" / ".join(key): value for key, value in self.memory.items()},
        }


@dataclass(frozen=True)
class Operation:
    """A layer with what it meets in training: `forward` computes, `both` computes and differentiates."""

    forward: Callable[[], Tensor]
    both: Callable[[], object]


def compare(rounds: int, batch_size: int = BATCH_SIZE) -> Figures:
    """Let the contenders take turns; returns every figure."""
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    calls: dict[Key, Callable[[], object]] = {}
    figures = Figures()
    for name in ("builtin", *ALGORITHMS):
        for operation, parts in _operations(name, images, labels).items():
            if operation != STEP:
                calls[operation, "forward", name] = parts.forward
            calls[operation, "forward+backward", name] = parts.both
            figures.memory[operation, name] = peak_extra_memory(parts.both)
    for number in range(rounds):
        for key, call in calls.items():
            call()
            started = time.perf_counter()
            call()
            figures.seconds.setdefault(key, []).append(time.perf_counter() - started)
        print(f"round {number + 1} of {rounds}", flush=True)
    return figures


def _operations(name: str, images: Tensor, labels: Tensor) -> dict[str, Operation]:
    """One contender's convolutions, its poolings of both kinds, and its training step."""
    average = _lenet(name, "AvgPool2d", nn.Sigmoid)
    largest = _lenet(name, "MaxPool2d", nn.ReLU)
    optimizer = torch.optim.SGD(average.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(average(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    met = _recorded(average, images, labels)
    met |= {f"{stage} max": _recorded(largest, images, labels)[stage] for stage in ("pool1", "pool2")}
    wanted = ("conv1", "conv2", "pool1", "pool2", "pool1 max", "pool2 max")
    return {operation: met[operation] for operation in wanted} | {STEP: Operation(lambda: average(images), step)}


def _lenet(name: str, pool: str, activation: type[nn.Module]) -> LeNet:
    if name == "builtin":
        net = LeNet(nn.Conv2d, getattr(nn, pool), activation)
    else:
        conv = partial(layers.Conv2d, algorithm=name)
        net = LeNet(conv, partial(getattr(layers, pool), algorithm=name), activation)
    xavier_uniform_(net)
    return net.to(memory_format=torch.channels_last)


def _recorded(net: LeNet, images: Tensor, labels: Tensor) -> dict[str, Operation]:
    """The stages of a network, each with the input and the gradient that one training step brings it."""
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    values = images
    for name, stage in net.named_children():
        inputs[name] = values.detach().requires_grad_(values.requires_grad)
        values = stage(values)
        values.register_hook(partial(gradients.__setitem__, name))
    F.cross_entropy(values, labels).backward()  # type: ignore[no-untyped-call]

    def operation(name: str, stage: nn.Module) -> Operation:
        needs = [tensor for tensor in (inputs[name], *stage.parameters()) if tensor.requires_grad]
        return Operation(
            lambda: stage(inputs[name]),
            lambda: torch.autograd.grad(stage(inputs[name]), needs, gradients[name]),
        )

    return {name: operation(name, stage) for name, stage in net.named_children()}


def peak_extra_memory(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch has allocated at a time during the call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def report(figures: Figures) -> str:
    """The figures as text: times of PyTorch's layers, the others as multiples of them."""
    rounds = len(next(iter(figures.seconds.values())))
    rows = [f"{'operation':<15}{'pass':<18}{'layers':<15}{'× builtin':<22}{'median ms':>10}{'peak extra MiB':>17}"]
    for (operation, which, name), seconds in figures.seconds.items():
        builtin = figures.seconds[operation, which, "builtin"]
        ratio = "" if name == "builtin" else spread(ratios(seconds, builtin), ".2f")
        memory = f"{figures.memory[operation, name] / 2**20:.1f}" if which != "forward" else ""
        milliseconds = f"{1000 * statistics.median(seconds):.2f}"
        rows.append(f"{operation:<15}{which:<18}{name:<15}{ratio:<22}{milliseconds:>10}{memory:>17}")
    head, *body = rows
    order = list(dict.fromkeys((operation, which) for operation, which, _ in figures.seconds))
    keys = list(figures.seconds)
    body = [row for group in order for key, row in zip(keys, body, strict=True) if key[:2] == group]
    return "\n".join([*heading(rounds), f"Batches of {BATCH_SIZE} images.", head, *body])
