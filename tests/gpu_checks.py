"""What test_gpu.py looks at, in a process of its own: `python -m tests.gpu_checks NAME` prints it as JSON.

Where a process has set up a GPU, its forks cannot use one any more; so pytest does not set one up.
"""

import copy
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from lenet import LeNet, Synthetic
from lenet.data import Block, Images
from lenet.data.augment import Augment
from lenet.fast.cuda import CudaTraining, launch
from lenet.layers.modules import AvgPool2d, Conv2d
from lenet.models import init_weights_
from lenet.training.fast_steps import KernelStep, RecordedStep
from lenet.training.module import Classifier
from lenet.training.optimizers import Muon
from lenet.training.step import PlainStep
from tests.training.small import Alone, fit

torch.backends.cudnn.allow_tf32 = False  # as in a run
DEVICE = torch.device("cuda")
SIZES = (1, 64, 128, 250, 256, 301, 1003, 8192)
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=0.5, fused=True),
    "momentum": partial(SGD, lr=0.125, momentum=0.9, weight_decay=2**-10, fused=True),
    "Adam": partial(Adam, lr=2**-10, fused=True),
    "AdamW": partial(AdamW, lr=2**-10, weight_decay=0.125, fused=True),
}
RECORDABLE = OPTIMIZERS | {"Muon": partial(Muon, lr=2**-10)}
KERNELS: dict[str, Callable[[], nn.Module]] = {
    f"{activation.__name__}, {pool.__name__}": partial(LeNet, activation=activation, pool=pool)
    for activation in (nn.Sigmoid, nn.ReLU)
    for pool in (nn.AvgPool2d, nn.MaxPool2d)
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "normalised, dropout": partial(LeNet, norm=nn.BatchNorm2d, hidden_norm=nn.BatchNorm1d, dropout=0.2),
    "im2col": partial(LeNet, conv=partial(Conv2d, algorithm="im2col"), pool=AvgPool2d),
    "a user's own": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(676, 10)),
}


def data(count: int = 20_000) -> Images:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=draw)
    return Images(images.to(DEVICE), torch.randint(10, (count,), generator=draw).to(DEVICE))


def new(net: Callable[[], nn.Module], optimizer: str, **settings: Any) -> Alone:
    torch.manual_seed(0)
    module = Alone(net(), **settings).to(DEVICE)
    module.optimizer = RECORDABLE[optimizer](module.parameters())
    return module


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])


def gradients(sizes: Sequence[int] = SIZES, load: launch.Loader = launch.load) -> dict[str, tuple[float, float]]:
    """The largest distance of a parameter's gradient from float64, as a share of its norm: the kernel's, PyTorch's.

    Where a value is close to zero before a ReLU, or two are close in a maximum, rounding decides which way it goes.
    """
    found, (images, labels) = {}, data()
    for name, make in KERNELS.items():
        for size in sizes:
            torch.manual_seed(size)
            net = make().to(DEVICE)
            init_weights_(net)
            exact, plain = copy.deepcopy(net).double(), copy.deepcopy(net)
            order = torch.randperm(len(labels))[:size].to(DEVICE)
            training = CudaTraining(net, SGD(net.parameters(), lr=0.5, fused=True), size, load)
            loss, correct = training.train(images, labels, order, [size], [0.0])
            logits = exact(images[order].double() / 255)
            its_loss = F.cross_entropy(logits, labels[order])
            its_loss.backward()  # type: ignore[no-untyped-call]
            F.cross_entropy(plain(images[order].float() / 255), labels[order]).backward()  # type: ignore[no-untyped-call]
            assert abs(float(loss[0].double() / its_loss) - 1) < 1e-5
            assert abs(int(correct) - int((logits.argmax(1) == labels[order]).sum())) <= size / 1000
            found[f"{name}, {size}"] = distance(net, exact), distance(plain, exact)
    return found


def distance(net: nn.Module, exact: nn.Module) -> float:
    """The largest of a gradient from the exact one, as a share of its norm."""
    pairs = [(mine.grad, its.grad) for mine, its in zip(net.parameters(), exact.parameters(), strict=True)]
    return max(float((mine.double() - its).norm() / its.norm()) for mine, its in pairs if mine is not None)  # type: ignore[operator, union-attr]


def steps() -> dict[str, dict[str, float]]:
    """Twenty steps: distances from float64 as shares of the change, by the kernel and by PyTorch; and the same bits."""
    found, (images, labels) = {}, data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[: 100 + 19 * 256].to(DEVICE)
    sizes = ((100, 100), *((256, 256),) * 19)
    block = Block(Images(images, labels), order, sizes)
    for net_name, net in KERNELS.items():
        for name in OPTIMIZERS:
            ends = []
            for make in (partial(KernelStep, batch_size=256), partial(KernelStep, batch_size=256), None):
                module = new(net, name)
                step = PlainStep(module) if make is None else make(module, module.optimizer)
                for part in (block.first(7), Block(block.data, order[100 + 6 * 256 :], sizes[7:])):
                    step.train(part, module.optimizer, None)
                ends.append(weights(module))
            exact = new(net, name).double()
            exact.optimizer = OPTIMIZERS[name](exact.parameters())
            start = weights(exact)
            PlainStep(exact).train(block, exact.optimizer, None)
            change = (weights(exact) - start).norm()
            ours, _, plain = (float((end - weights(exact)).norm() / change) for end in ends)
            same = float(torch.equal(ends[0], ends[1]))
            found[f"{net_name}, {name}"] = {"ours": ours, "plain": plain, "same bits": same}
    return found


def recorded() -> dict[str, float]:
    """The largest difference of a weight between recorded and plain steps; rates are exact in float32."""
    torch.use_deterministic_algorithms(True)
    found, images = {}, data(4_000)
    blocks = []
    for number in range(8):
        order = torch.randperm(4_000, generator=torch.Generator().manual_seed(number))[: 36 + 9 * 64].to(DEVICE)
        blocks.append(Block(images, order, ((36, 36), *((64, 64),) * 9)))
    for net_name, net in (KERNELS | OTHERS).items():
        for name in RECORDABLE:
            ends = []
            for kind in (PlainStep, RecordedStep):
                module = new(net, name, augment=Augment(shift=1, flip=0.5, mixup=0.2) if name == "AdamW" else None)
                step = kind(module)
                for number, block in enumerate(blocks):
                    torch.manual_seed(number)
                    step.train(block, module.optimizer, None)
                assert step.is_current()
                ends.append(weights(module))
            found[f"{net_name}, {name}"] = float((ends[0] - ends[1]).abs().max())
    return found


class Waits(LeNet):
    """Asks the device for a number in each step, which cannot be recorded."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if float(images.sum()) >= 0 else 2)


def refused() -> dict[str, Any]:
    """What is logged of a network that cannot be recorded; and its loss, which dropout and seeds decide."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lenet").addHandler(handler)
    losses = []
    for fuse in (True, False):
        module = Classifier(Waits(dropout=0.2), partial(SGD, lr=0.5, fused=True), blocks=True, fuse=fuse, seed=0)
        small = Synthetic(train_size=700, test_size=50, val_size=50, batch_size=64, block_steps=5)
        fit([], data=small, module=module, accelerator="gpu", devices=1, max_epochs=5)
        losses.append(module.metrics["train/loss"])
    return {"lines": lines, "losses": losses}


def costs() -> dict[str, dict[str, float]]:
    """By step: MiB of the GPU's memory, and the seconds of the first block of 50 steps."""
    found, images = {}, data()
    block = Block(images, torch.arange(50 * 256).to(DEVICE), ((256, 256),) * 50)
    for name in ("plain", "recorded", "kernel"):
        module = step = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        module = new(LeNet, "SGD")
        step = {"plain": PlainStep, "recorded": RecordedStep}.get(name, lambda m: KernelStep(m, m.optimizer, 256))(
            module
        )
        step.train(block, module.optimizer, None)
        torch.cuda.synchronize()
        most = torch.cuda.max_memory_reserved() - before
        found[name] = {"MiB": most / 2**20, "seconds": time.perf_counter() - began}
    return found


if __name__ == "__main__":
    print(json.dumps({each.__name__: each for each in (gradients, steps, recorded, refused, costs)}[sys.argv[1]]()))
