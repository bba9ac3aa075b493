"""Training by the CUDA kernel, emulated on the CPU, against PyTorch in double precision."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from lenet.fast import UnsuitableError
from lenet.fast.cuda import CudaTraining
from lenet.fast.cuda.compiler import Variant
from lenet.models import LeNet, init_weights_
from tests import gpu_checks
from tests.fast.cuda.conftest import FALLING, RISING, SHUFFLED, EmulatedKernel, Library

PORTABLE, CLUSTER = Variant(1, 1, False), Variant(2, 2, True)
VARIANTS = [PORTABLE, CLUSTER] + [
    pytest.param(Variant(*each), marks=pytest.mark.long) for each in ((1, 2, False), (2, 1, True), (2, 2, False))
]
KINDS = [(activation, pool) for activation in (nn.Sigmoid, nn.ReLU) for pool in (nn.AvgPool2d, nn.MaxPool2d)]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "plain SGD": partial(SGD, lr=0.5, weight_decay=0.1),
    "momentum": partial(SGD, lr=0.5, momentum=0.9, weight_decay=0.1),
    "Nesterov": partial(SGD, lr=0.5, momentum=0.8, nesterov=True),
    "Adam": partial(Adam, lr=0.01, weight_decay=0.1),
    "AdamW": partial(AdamW, lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5),
}
LATER = ("plain SGD", "Nesterov", "AdamW")
DRAW = torch.Generator().manual_seed(1)
IMAGES = torch.randint(256, (16, 1, 28, 28), dtype=torch.uint8, generator=DRAW)
LABELS = torch.randint(10, (16,), generator=DRAW)
BLOCKS, LARGEST = 4, 11


def lenet(activation: Any = nn.ReLU, pool: Any = nn.MaxPool2d) -> Any:
    torch.manual_seed(0)
    net = LeNet(activation=activation, pool=pool)
    init_weights_(net)
    return net


def steps_of(*sizes: int) -> list[Tensor]:
    return [torch.randint(len(IMAGES), (size,)) for size in sizes]


@dataclass
class Trained:
    """A network, what trains it, and the same in double precision."""

    net: Any
    optimizer: Optimizer
    training: CudaTraining
    exact: Any
    exact_optimizer: Optimizer

    def by_kernel(self, *steps: Tensor) -> tuple[Tensor, Tensor]:
        sizes, rate = [len(step) for step in steps], self.optimizer.param_groups[0]["lr"]
        return self.training.train(IMAGES, LABELS, torch.cat(steps), sizes, [rate / size for size in sizes])

    def exactly(self, *steps: Tensor) -> tuple[list[float], list[int]]:
        losses, correct = zip(*(by_pytorch(self.exact, self.exact_optimizer, step) for step in steps), strict=True)
        return list(losses), list(correct)

    def bits(self) -> list[bytes]:
        state = [value for each in self.optimizer.state.values() for value in each.values()]
        tensors = [*self.net.parameters(), *(each.grad for each in self.net.parameters()), *state]
        return [each.detach().numpy().tobytes() for each in tensors if each is not None]


def by_pytorch(net: Any, optimizer: Optimizer, step: Tensor) -> tuple[float, int]:
    """A step, with a learning rate for its size."""
    (group,) = optimizer.param_groups
    rate, group["lr"] = group["lr"], group["lr"] / len(step)
    logits = net(IMAGES[step].to(net.conv1.weight.dtype) / 255)
    loss = F.cross_entropy(logits, LABELS[step])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    group["lr"] = rate
    return loss.item(), int((logits.argmax(dim=1) == LABELS[step]).sum())


Start = Callable[..., Trained]


@pytest.fixture
def start(library: Library) -> Start:
    def started(
        net: Any, variant: Variant = PORTABLE, optimizer: str = "plain SGD", order: int = RISING, blocks: int = BLOCKS
    ) -> Trained:
        exact, make = copy.deepcopy(net).double(), OPTIMIZERS[optimizer]
        ours, theirs = make(net.parameters()), make(exact.parameters())
        kernel = partial(EmulatedKernel, library(variant), variant, blocks=blocks, order=order)
        training = CudaTraining(net, ours, most(variant, blocks), lambda kind, *_: kernel(kind=kind))
        training._workspace.fill_(torch.nan)  # nothing may be used before it is written
        return Trained(net, ours, training, exact, theirs)

    return started


def most(variant: Variant, blocks: int = BLOCKS) -> int:
    """Images of the largest step: more than one round of all blocks, if the variant can do that."""
    return blocks * variant.images if variant.one_round else LARGEST


def assert_close(ours: Iterable[Any], theirs: Iterable[Any], tolerance: float = 1e-5) -> None:
    """Distances are small shares of the norms."""
    for number, (mine, exact) in enumerate(zip(ours, theirs, strict=True)):
        distance = float((mine.detach() - exact.detach()).norm() / exact.detach().norm())
        assert distance < tolerance, (number, distance)


def assert_same(trained: Trained, *steps: Tensor) -> None:
    losses, correct = trained.by_kernel(*steps)
    exact_losses, exact_correct = trained.exactly(*steps)
    assert losses.tolist() == pytest.approx(exact_losses, rel=1e-5)
    assert correct.tolist() == exact_correct
    exact = [each.grad for each in trained.exact.parameters()]
    assert_close((each.grad for each in trained.net.parameters()), exact)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("activation", "pool"), KINDS)
def test_loss_and_gradients_are_pytorchs(start: Start, variant: Variant, activation: Any, pool: Any) -> None:
    assert_same(start(lenet(activation, pool), variant), *steps_of(5 if variant.images > 1 else 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_of_any_size(start: Start, variant: Variant) -> None:
    assert_same(start(lenet(nn.Sigmoid), variant), *steps_of(1, most(variant)))


@pytest.mark.long
def test_a_grid_of_a_whole_gpu(start: Start) -> None:
    assert_same(start(lenet(nn.Sigmoid, nn.AvgPool2d), CLUSTER, blocks=132), *steps_of(256))


@pytest.mark.long
def test_the_check_for_gpus_passes_here(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "DEVICE", torch.device("cpu"))
    kernel = partial(EmulatedKernel, library(PORTABLE), PORTABLE, blocks=BLOCKS)
    distances = gpu_checks.gradients((3,), lambda kind, *_: kernel(kind=kind))
    assert len(distances) == 4
    assert all(ours < 1e-5 for ours, _ in distances.values())


@pytest.mark.parametrize("variant", [PORTABLE, *(pytest.param(CLUSTER, marks=pytest.mark.long), *VARIANTS[2:])])
def test_neither_the_order_of_threads_nor_the_division_into_launches_changes_a_bit(
    start: Start, variant: Variant
) -> None:
    steps, found = steps_of(3, most(variant), 4), []
    for order, launches in ((RISING, [steps]), (FALLING, [steps]), (SHUFFLED, [steps[:1], steps[1:]])):
        trained = start(lenet(), variant, "Adam", order)
        results = [torch.cat(each) for each in zip(*(trained.by_kernel(*each) for each in launches), strict=True)]
        found.append([*trained.bits(), *(each.numpy().tobytes() for each in results)])
    assert found[0] == found[1] == found[2]


def test_of_equal_maxima_the_first_has_the_gradient(start: Start) -> None:
    net = lenet()
    with torch.no_grad():  # sums of such numbers are exact: all outputs of a channel are equal
        net.conv1.weight.zero_()
        net.conv1.bias.fill_(0.5)
        net.conv2.weight.copy_(torch.randint(-1, 2, net.conv2.weight.shape) / 4)
        net.conv2.bias.fill_(1)
    assert_same(start(net), *steps_of(3))


def test_of_equal_logits_the_first_is_the_answer(start: Start) -> None:
    net = lenet()
    nn.init.zeros_(net.fc3.weight)
    nn.init.zeros_(net.fc3.bias)
    _, correct = start(net).training.train(IMAGES, torch.tensor([0, 9] * 8), torch.arange(2), [1, 1], [0.0, 0.0])
    assert correct.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["momentum", "Adam", *(pytest.param(each, marks=pytest.mark.long) for each in LATER)])
def test_the_kernel_and_pytorchs_optimizers_take_turns(start: Start, name: str) -> None:
    trained, steps = start(lenet(nn.Sigmoid, nn.AvgPool2d), optimizer=name), steps_of(3, 4, 4, 2)
    first = [each.detach().clone() for each in trained.net.parameters()]
    trained.by_kernel(*steps[:2])
    other = OPTIMIZERS[name](trained.net.parameters())
    other.load_state_dict(trained.optimizer.state_dict())
    by_pytorch(trained.net, other, steps[2])
    trained.optimizer.load_state_dict(other.state_dict())
    trained.by_kernel(steps[3])
    trained.exactly(*steps)
    moved = (each - start for each, start in zip(trained.net.parameters(), first, strict=True))
    exact = (each - start for each, start in zip(trained.exact.parameters(), first, strict=True))
    assert_close(moved, exact, 1e-4)
    pairs = zip(trained.optimizer.state.values(), trained.exact_optimizer.state.values(), strict=True)
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        assert_close(ours.values(), theirs.values())
        assert all(each.dtype == torch.float32 for each in ours.values())


@pytest.mark.parametrize(
    "number", [0, 3, 4, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 2, 5, 6, 7, 8, 9))]
)
def test_nan_stays_nan(start: Start, number: int) -> None:
    net = lenet()
    with torch.no_grad():
        list(net.parameters())[number].view(-1)[0] = torch.nan
    trained, step = start(net), steps_of(1)
    loss, correct = trained.by_kernel(*step)
    assert loss.isnan().all()
    assert correct.tolist() == trained.exactly(*step)[1]


def test_a_label_that_is_no_class_makes_the_loss_nan(start: Start) -> None:
    trained = start(lenet())
    losses, _ = trained.training.train(
        IMAGES, LABELS + torch.tensor([0, 10] * 8), torch.arange(3), [1, 1, 1], [0.1] * 3
    )
    assert losses.isnan().tolist() == [False, True, False]


def test_arguments_that_do_not_fit_are_refused(start: Start) -> None:
    training, order = start(lenet()).training, torch.arange(4)
    for sizes, rates in (([3], [0.1]), ([4, 0], [0.1, 0.1]), ([4], []), ([-1, 5], [0.1, 0.1])):
        with pytest.raises(ValueError, match="sizes"):
            training.train(IMAGES, LABELS, order, sizes, rates)
    with pytest.raises(ValueError, match=r"sizes .* 1 to 11"):
        training.train(IMAGES, LABELS, torch.arange(12), [12], [0.1])
    for images, labels in ((IMAGES.float(), LABELS), (IMAGES, LABELS.int()), (IMAGES.mT, LABELS)):
        with pytest.raises(ValueError, match="contiguous"):
            training.train(images, labels, order, [4], [0.1])
    assert training.train(IMAGES, LABELS, order[:0], [], [])[0].shape == (0,)


UNSUITABLE: dict[str, Callable[[LeNet], Optimizer]] = {
    "another optimizer": lambda net: torch.optim.RMSprop(net.parameters()),
    "a subclass": lambda net: type("Own", (SGD,), {})(net.parameters(), lr=0.1),
    "two groups": lambda net: SGD([{"params": net.conv1.parameters()}, {"params": net.conv2.parameters()}], lr=0.1),
    "some parameters": lambda net: SGD([*net.conv1.parameters()], lr=0.1),
    "amsgrad": lambda net: Adam(net.parameters(), amsgrad=True),
    "maximize": lambda net: SGD(net.parameters(), lr=0.1, maximize=True),
    "dampening": lambda net: SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_other_optimizers_are_refused(name: str) -> None:
    net = lenet()
    with pytest.raises(UnsuitableError):
        CudaTraining(net, UNSUITABLE[name](net), 4)


def test_other_networks_are_refused() -> None:
    net = LeNet(dropout=0.5)
    with pytest.raises(UnsuitableError, match="whole"):
        CudaTraining(net, SGD(net.parameters(), lr=0.1), 4)


def test_it_notices_what_changes(start: Start) -> None:
    trained = start(lenet(), optimizer="momentum")
    (group,) = trained.optimizer.param_groups
    assert trained.training.is_current()
    group["lr"] = 0.1
    assert trained.training.is_current()
    group["momentum"] = 0.5
    assert not trained.training.is_current()
    group["momentum"] = 0.9
    hook = trained.optimizer.register_step_post_hook(lambda *_: None)
    assert not trained.training.is_current()
    hook.remove()
    assert trained.training.is_current()
    trained.net.act1 = nn.Sigmoid()
    assert not trained.training.is_current()
