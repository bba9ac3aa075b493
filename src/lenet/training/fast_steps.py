"""The same steps faster, with the means of `lenet.fast`: kernels for the CPU, a kernel for GPUs, CUDA graphs."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet import fast
from lenet.data import Block, Images
from lenet.training.comparison import Measured, gradients_of
from lenet.training.step import BlockResult, PlainStep
from lenet.training.sums import right_answers

if TYPE_CHECKING:
    from lenet.training.module import Classifier


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
            settings_of(optimizer.param_groups),
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


def settings_of(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's, without the learning rates."""
    return [_plain(group) | {"lr": None} for group in groups]


def _fingerprint(part: Any) -> tuple[Any, dict[str, Any]]:
    """What changes when a layer or a loss is replaced, or gets another setting."""
    return part, _plain(getattr(part, "__dict__", {}))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: repr(value) for name, value in values.items() if isinstance(value, int | float | str | tuple)}
