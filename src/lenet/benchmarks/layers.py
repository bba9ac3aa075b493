"""How fast are our layers, as a multiple of the time that PyTorch's own need in the same run?

    python scripts/benchmark.py layers --rounds 15

Measured are LeNet's two convolutions and two poolings, and a whole training step of it, with a batch of 256 images.
The contenders are LeNets that differ in their layers alone: PyTorch's (`builtin`), and ours with each algorithm, all
in channels-last layout, as train.py has them where it computes layer by layer. Layers are timed on the tensors that
they meet in their own LeNet: input and the output's gradient are recorded during one training step, values and memory
layout alike. The backward computes what training needs: no gradient for images.

The contenders take their turns one after the other, in each round another begins; each runs once to warm up and once
for the clock. A ratio is that of one round. Peak extra memory is what a forward and backward pass takes at most
beyond what was there before it, output included, as PyTorch's allocator counts it; buffers that oneDNN or MKL
allocate for themselves are not seen.
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
from lenet.benchmarks.report import heading, in_turn, ratios, spread
from lenet.fast.memory import keep_freed_memory
from lenet.layers.functional import ALGORITHMS
from lenet.models.lenet import LeNet, xavier_uniform_

BATCH_SIZE = 256
STEP = "training step"
CONTENDERS = ("builtin", *ALGORITHMS)
FORWARD, BOTH = "forward", "forward+backward"

Passes = dict[str, Callable[[], object]]
"""What is timed of an operation: a call for each pass."""

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


def compare(rounds: int, batch_size: int = BATCH_SIZE) -> Figures:
    """Let the contenders take turns; returns every figure."""
    keep_freed_memory()
    torch.manual_seed(0)
    images, labels = torch.rand(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    figures = Figures()
    # By operation, so that the contenders in one take their turns directly after each other.
    calls: dict[tuple[str, str], dict[str, Callable[[], object]]] = {}
    for name in CONTENDERS:
        for operation, passes in _operations(name, images, labels).items():
            for which, call in passes.items():
                calls.setdefault((operation, which), {})[name] = call
            figures.memory[operation, name] = peak_extra_memory(passes[BOTH])
    for number in range(rounds):
        for (operation, which), contenders in calls.items():
            for name in in_turn(CONTENDERS, number):
                contenders[name]()
                started = time.perf_counter()
                contenders[name]()
                figures.seconds.setdefault((operation, which, name), []).append(time.perf_counter() - started)
        print(f"round {number + 1} of {rounds}", flush=True)
    return figures


def _operations(name: str, images: Tensor, labels: Tensor) -> dict[str, Passes]:
    """One contender's convolutions, its poolings of both kinds, and its training step."""
    torch.manual_seed(0)
    average, largest, trained = (
        _lenet(name, pool, activation)
        for pool, activation in (("AvgPool2d", nn.Sigmoid), ("MaxPool2d", nn.ReLU), ("AvgPool2d", nn.Sigmoid))
    )
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(trained(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    met, met_largest = _recorded(average, images, labels), _recorded(largest, images, labels)
    return {
        **{stage: met[stage] for stage in ("conv1", "conv2", "pool1", "pool2")},
        **{f"{stage} max": met_largest[stage] for stage in ("pool1", "pool2")},
        STEP: {BOTH: step},
    }


def _lenet(name: str, pool: str, activation: type[nn.Module]) -> LeNet:
    if name == "builtin":
        net = LeNet(nn.Conv2d, getattr(nn, pool), activation)
    else:
        conv = partial(layers.Conv2d, algorithm=name)
        net = LeNet(conv, partial(getattr(layers, pool), algorithm=name), activation)
    xavier_uniform_(net)
    return net.to(memory_format=torch.channels_last)


def _recorded(net: LeNet, images: Tensor, labels: Tensor) -> dict[str, Passes]:
    """The stages of a network, each with the input and the gradient that one training step brings it."""
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    values = images
    for name, stage in net.named_children():
        inputs[name] = values.detach().requires_grad_(values.requires_grad)
        values = stage(values)
        values.register_hook(partial(gradients.__setitem__, name))
    F.cross_entropy(values, labels).backward()  # type: ignore[no-untyped-call]

    def passes(name: str, stage: nn.Module) -> Passes:
        needs = [tensor for tensor in (inputs[name], *stage.parameters()) if tensor.requires_grad]
        return {
            FORWARD: lambda: stage(inputs[name]),
            BOTH: lambda: torch.autograd.grad(stage(inputs[name]), needs, gradients[name]),
        }

    return {name: passes(name, stage) for name, stage in net.named_children()}


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
    for operation, which in dict.fromkeys((operation, which) for operation, which, _ in figures.seconds):
        for name in CONTENDERS:
            if (seconds := figures.seconds.get((operation, which, name))) is None:
                continue
            builtin = figures.seconds[operation, which, "builtin"]
            ratio = "" if name == "builtin" else spread(ratios(seconds, builtin), ".2f")
            memory = f"{figures.memory[operation, name] / 2**20:.1f}" if which == BOTH else ""
            milliseconds = f"{1000 * statistics.median(seconds):.2f}"
            rows.append(f"{operation:<15}{which:<18}{name:<15}{ratio:<22}{milliseconds:>10}{memory:>17}")
    return "\n".join([*heading(rounds), f"Batches of {BATCH_SIZE} images.", *rows])
