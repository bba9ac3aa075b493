"""What only a GPU can show: the compiled kernel against PyTorch in double precision, for small and large batches.

tests/test_gpu.py runs it in a process that sees the GPU; prints a line for each case.
"""

import copy
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.fast.cuda import CudaTraining, launch
from lenet.models import LeNet, xavier_uniform_

OPTIMIZERS: list[Any] = [
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    partial(torch.optim.AdamW, lr=1e-3, fused=True),
]


def check(device: str, batch_sizes: Sequence[int], load: launch.Loader = launch.load) -> None:
    kinds = itertools.product((nn.Sigmoid, nn.ReLU), (nn.AvgPool2d, nn.MaxPool2d), OPTIMIZERS, batch_sizes)
    for activation, pool, optimizer, size in kinds:
        torch.manual_seed(size)
        images = torch.randint(256, (3 * size, 1, 28, 28), dtype=torch.uint8).to(device)
        labels = torch.randint(10, (3 * size,)).to(device)
        order: Any = torch.randperm(3 * size).to(device)
        net = LeNet(activation=activation, pool=pool)
        xavier_uniform_(net)
        steps = order[: 2 * size + size // 3 + 1].split([size // 3 + 1, size, size])  # what is left over comes first
        results = [_trained(net, device, optimizer, images, labels, steps, each, load) for each in (steps, [steps])]
        once, again = ([*net.parameters(), *(each.grad for each in net.parameters())] for net, _ in results)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True)), "several launches give other bits"
        exact: Any = copy.deepcopy(net).to(device).double()
        exact_optimizer, losses = optimizer(exact.parameters()), []
        for step in steps:
            loss = F.cross_entropy(exact(images[step].double() / 255), labels[step])
            exact_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            exact_optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(results[0][1].double(), torch.stack(losses), rtol=1e-5, atol=1e-5)
        gradients = zip(once[10:], [each.grad for each in exact.parameters()], strict=True)
        distances = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in gradients]
        print(activation.__name__, pool.__name__, optimizer.func.__name__, size, f"{max(distances):.1e}", flush=True)
        assert max(distances) < 1e-4


def _trained(
    net: Any,
    device: str,
    optimizer: Any,
    images: Tensor,
    labels: Tensor,
    steps: Any,
    launches: Any,
    load: launch.Loader,
) -> tuple[Any, Tensor]:
    """A trained copy of the network, and the losses; each launch is a step or several."""
    net = copy.deepcopy(net).to(device)
    chosen = optimizer(net.parameters())
    rate = chosen.param_groups[0]["lr"]
    training, losses = CudaTraining(net, chosen, max(map(len, steps)), load), []
    for each in launches:
        several = [each] if isinstance(each, Tensor) else list(each)
        sizes = [len(step) for step in several]
        losses.append(training.train(images, labels, torch.cat(several), sizes, [rate] * len(sizes))[0])
    return net, torch.cat(losses)


if __name__ == "__main__":
    check("cuda", (1, 64, 256, 1003))
