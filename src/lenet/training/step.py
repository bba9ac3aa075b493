"""What an optimizer step computes: forward, loss, backward and update, with PyTorch's layers.

This is the definition, as the user reads and edits network and loss. `fast_steps` does the same faster, and `choice`
says which step a network gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet.data import Block
from lenet.training.comparison import Measured, gradients_of, unchanged
from lenet.training.sums import right_answers

if TYPE_CHECKING:
    from lenet.training.module import Classifier


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
