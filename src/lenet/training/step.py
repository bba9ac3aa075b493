"""What an optimizer step computes: forward, loss, backward and update.

`PlainStep` is the definition: PyTorch's layers and the module's own loss, as the user reads and edits them. The others
do the same faster, with the means of `lenet.fast`: `FusedStep` with kernels for the CPU, `KernelStep` with one for
GPUs, `RecordedStep` as a CUDA graph of the plain step. Those with kernels are used only after they were compared with
the plain one on the first batch: the loss, the right answers and every gradient. So an edit of network or loss costs
speed at most, never correctness.
"""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet import fast
from lenet.data import Batch, Block, Images
from lenet.training.comparison import Measured, compare, gradients_of, unchanged
from lenet.training.sums import right_answers

if TYPE_CHECKING:
    from lenet.training.module import Classifier

log = logging.getLogger(__name__)


class BlockResult(NamedTuple):
    """Of the steps of a block: their mean losses (steps,), the right answers of all, the last learning rate."""

    losses: Tensor
    correct: Tensor
    lr: float


class PlainStep:
    """Forward, loss and backward with PyTorch's layers; network and loss are the module's, as they are at each call."""

    def __init__(self, module: Classifier) -> None:
        self.module = module
        self.devices = 1  # how many train together
        self.is_checked = False

    def is_current(self) -> bool:
        """Whether the step still computes what the module, as it is now, says."""
        return True

    def train(self, block: Block, optimizer: Optimizer, scheduler: LRScheduler | None) -> BlockResult:
        """Take all steps of a block."""
        losses, answers, targets = [], [], []
        for batch in block.batches():
            images, labels = self.module.augmented(batch.images, batch.labels)
            loss, logits = self.gradients(images, labels, batch.total)
            optimizer.step()
            lr = optimizer.param_groups[0]["lr"]
            if scheduler is not None:
                scheduler.step()
            losses.append(loss)
            answers.append(logits)
            targets.append(labels)
        return BlockResult(torch.stack(losses), right_answers(torch.cat(answers), torch.cat(targets)), float(lr))

    def measure(self, images: Tensor, labels: Tensor) -> Measured:
        """What the step makes of a batch, (N, C, H, W) bytes and (N,) int64; the module stays as it is."""
        with unchanged(self.module):
            loss, logits = self.gradients(images, labels, len(labels))
            return Measured(loss, right_answers(logits, labels), gradients_of(self.module))

    def gradients(self, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss over a batch in the parameters, instead of what was there.

        Args:
            images: (N, C, H, W), this device's part of the batch; bytes 0–255 or floats in [0, 1].
            labels: (N,) int64, or probabilities (N, classes).
            total: images in the batch, over all devices.

        Returns:
            The mean loss of this device's images () and their logits (N, classes), without a graph.
        """
        self.module.zero_grad(set_to_none=True)
        return self._backward(self.module(images), images, labels, total)

    def _backward(self, logits: Tensor, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        # Without images it is 0, with gradients of 0.
        loss = self.module.objective(logits, labels, images) if len(labels) else logits.sum()
        # Lightning averages the gradients of the devices, whose parts of a batch may differ in size.
        weight = len(labels) * self.devices / total
        share = loss if weight == 1 else loss * weight
        if self.devices > 1:
            self.module.manual_backward(share)
        else:
            share.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()


class FusedStep(PlainStep):
    """The same with compiled kernels: for the whole step if they have it, else for the convolutions."""

    def __init__(self, module: Classifier, network: fast.CompiledNetwork) -> None:
        super().__init__(module)
        self.network = network
        self._loss = _fingerprint(module.loss)

    def is_current(self) -> bool:
        return self.network.is_current() and self._loss == _fingerprint(self.module.loss)

    def gradients(self, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor]:
        if not self.network.accepts(images):
            return super().gradients(images, labels, total)
        is_plain = labels.dim() == 1 and self.module.distillation is None
        if self.network.is_whole and self.devices == 1 and is_plain:
            loss_sum, logits = self.network.gradients(images, labels, 1 / total)
            return loss_sum / len(labels), logits
        self.module.zero_grad(set_to_none=True)
        return self._backward(self.network(images), images, labels, total)


class RecordedStep(PlainStep):
    """The plain step on a GPU as a CUDA graph, for each size of a batch; its Python code runs only a few times."""

    def __init__(self, module: Classifier) -> None:
        super().__init__(module)
        self._recorded: dict[int, fast.RecordedSteps] = {}
        self._data: Images | None = None
        self._state: Any = None

    def is_current(self) -> bool:
        return not fast.has_hooks(self.module.net) and self._state in (None, self._now())

    @property
    def _is_refused(self) -> bool:
        return any(each.is_refused for each in self._recorded.values())

    def _now(self) -> Any:
        """What is recorded as it is, and holds no longer when it is changed."""
        optimizer = self.module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        tensors = (*self.module.parameters(), *self.module.buffers())
        states = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
        return (
            [each.data_ptr() for each in states],
            [_fingerprint(part) for part in (optimizer, self.module.augment, self.module.distillation)],
            [(id(each), each.data_ptr(), each.requires_grad) for each in tensors],
            [_fingerprint(layer) for layer in self.module.net.modules()],
            _fingerprint(self.module.loss),
            _settings(optimizer.param_groups),
        )

    def train(self, block: Block, optimizer: Optimizer, scheduler: LRScheduler | None) -> BlockResult:
        if self.devices > 1 or self._is_refused:
            return super().train(block, optimizer, scheduler)
        if self._data is not block.data:  # a recording reads the images that it was made with
            self._data, self._recorded = block.data, {}
        rates, losses, correct, step = learning_rates(optimizer, scheduler, len(block.sizes)), [], [], 0
        for size, steps in itertools.groupby(block.own_sizes):
            if size not in self._recorded:
                self._recorded[size] = fast.RecordedSteps(self._forward_backward, optimizer, *block.data, size)
            count, first = len(list(steps)), sum(block.own_sizes[:step])
            order = block.order[first : first + count * size]
            its_losses, its_correct = self._recorded[size](order, rates[step : step + count])
            losses.append(its_losses)
            correct.append(its_correct)
            step += count
        self._state = self._state or self._now()  # now that the optimizer has its state
        return BlockResult(torch.cat(losses), torch.cat(correct).sum(), rates[-1][0])

    def _forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.module.augmented(images, labels)
        loss, logits = self.gradients(images, labels, len(labels))
        return loss, right_answers(logits, labels)


class KernelStep(PlainStep):
    """A whole LeNet on a GPU, by one launch of a kernel for all steps of a block."""

    def __init__(self, module: Classifier, optimizer: Optimizer, batch_size: int) -> None:
        super().__init__(module)
        self._optimizer, self._batch_size = optimizer, batch_size
        self.kernel = fast.CudaTraining(module.net, optimizer, batch_size)
        self._loss = _fingerprint(module.loss)

    def is_current(self) -> bool:
        is_plain = self.module.augment is None and self.module.distillation is None
        return is_plain and self.kernel.is_current() and self._loss == _fingerprint(self.module.loss)

    def train(self, block: Block, optimizer: Optimizer, scheduler: LRScheduler | None) -> BlockResult:
        rates = [rate for rate, *_ in learning_rates(optimizer, scheduler, len(block.sizes))]
        losses, correct = self.kernel.train(*block.data, block.order, block.own_sizes, rates)
        return BlockResult(losses, correct.sum(), rates[-1])

    def measure(self, images: Tensor, labels: Tensor) -> Measured:
        module, optimizer = copy.deepcopy((self.module.net, self._optimizer))  # the kernel takes a step at once
        kernel = fast.CudaTraining(module, optimizer, self._batch_size)
        order = torch.arange(len(labels), device=labels.device)
        losses, correct = kernel.train(images, labels, order, [len(labels)], [0.0])
        gradients = {f"net.{name}": gradient for name, gradient in gradients_of(module).items()}
        return Measured(losses[0], correct[0], gradients)


def learning_rates(optimizer: Optimizer, scheduler: LRScheduler | None, steps: int) -> list[list[float]]:
    """The learning rates of the optimizer's groups in each of the next steps; takes the schedule to after them."""
    rates = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")  # they are taken a moment later
        for _ in range(steps):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if scheduler is not None:
                scheduler.step()
    return rates


def changes_only_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> bool:
    """Whether a step of the schedule changes nothing of the optimizer but learning rates; both stay as they are."""
    if scheduler is None:
        return True
    state, groups = copy.deepcopy(scheduler.state_dict()), [dict(group) for group in optimizer.param_groups]
    learning_rates(optimizer, scheduler, 1)
    same = _settings(optimizer.param_groups) == _settings(groups)
    scheduler.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update(before)
    return same


def _settings(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's, without the learning rates."""
    return [_plain(group) | {"lr": None} for group in groups]


def _fingerprint(part: Any) -> tuple[Any, dict[str, Any]]:
    """What changes when a layer or a loss is replaced, or gets another setting."""
    return part, _plain(getattr(part, "__dict__", {}))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: repr(value) for name, value in values.items() if isinstance(value, int | float | str | tuple)}


def make_step(module: Classifier) -> PlainStep:
    """The fastest step for the module's network, not yet checked; the weights get the memory layout that suits it."""
    device = module.trainer.strategy.root_device.type
    if device == "cuda" and module.fuse and not fast.has_hooks(module.net):
        return RecordedStep(module)
    if device != "cpu":
        return PlainStep(module)
    step = PlainStep(module)
    if module.fuse and module.trainer.precision == "32-true":  # the kernels know no other
        try:
            step = FusedStep(module, fast.CompiledNetwork(module.net))
        except fast.UnavailableError as reason:
            log.warning("fuse=true: %s; PyTorch's layers are used, which is slower", reason)
        except fast.UnsuitableError:
            pass  # other networks are computed by PyTorch: nothing to tell
    # PyTorch's own convolutions train considerably faster with channels last, in images and weights alike.
    is_whole = isinstance(step, FusedStep) and step.network.is_whole
    module.net.to(memory_format=torch.contiguous_format if is_whole else torch.channels_last)
    return step


def checked(step: PlainStep, block: Block, optimizer: Optimizer, scheduler: LRScheduler | None) -> PlainStep:
    """The step that is to be used, chosen once there is a first block: with kernels, if they compute what PyTorch does.

    Otherwise without, and a line says what differs.
    """
    devices, slower = step.module.trainer.world_size, PlainStep(step.module)
    if isinstance(step, RecordedStep) and devices == 1:
        if (unfit := _not_recordable(step.module, optimizer, scheduler)) is not None:
            log.warning("fuse=true: a step with %s cannot be recorded in a CUDA graph, which is slower", unfit)
            step = slower
        elif step.module.augment is None and step.module.distillation is None and not torch.is_autocast_enabled("cuda"):
            slower, step = step, _with_kernel(step, optimizer, max(block.own_sizes))
    if isinstance(step, FusedStep | KernelStep):
        batch = next((each for each in block.batches() if len(each.labels)), None)
        if batch is not None and (difference := _difference(step, batch)):
            log.warning("fuse=true: the compiled kernels give another %s; PyTorch's layers are used", difference)
            step = slower
    step.devices, step.is_checked = devices, True
    return step


def _not_recordable(module: Classifier, optimizer: Optimizer, scheduler: LRScheduler | None) -> str | None:
    """The name of a part that does other things in each step than those on the device; None if there is none."""
    parts = [
        (module.augment, module.augment is None or getattr(module.augment, "is_recordable", False)),
        (optimizer, fast.is_recordable(optimizer)),
        (scheduler, changes_only_rates(optimizer, scheduler)),
    ]
    return next((type(part).__name__ for part, fits in parts if not fits), None)


def _difference(step: PlainStep, batch: Batch) -> str | None:
    """What differs from the plain step on a batch, as training gets it."""
    with unchanged(step.module):
        images, labels = step.module.augmented(batch.images, batch.labels)
    return compare(PlainStep(step.module), step, images, labels)


def _with_kernel(step: PlainStep, optimizer: Optimizer, batch_size: int) -> PlainStep:
    """One with a kernel instead, if there is one for the network and the optimizer."""
    try:
        return KernelStep(step.module, optimizer, batch_size)
    except fast.UnavailableError as reason:
        log.warning("fuse=true: %s; PyTorch's layers are used, recorded in a CUDA graph, which is slower", reason)
    except fast.UnsuitableError:
        pass  # other networks are recorded: nothing to tell
    return step
