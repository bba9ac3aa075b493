"""Losses and right answers, added up where they are computed and read when they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class PendingSums(NamedTuple):
    """Sums that may not have been computed yet; on a GPU they are on their way, until `arrived`."""

    losses: Tensor
    correct: Tensor
    sizes: Sequence[int]
    first_step: int
    arrived: torch.cuda.Event | None


@dataclass
class Sums:
    """Running sums over images. They stay on the device until `read`: each reading waits for the device.

    Attributes:
        loss: sum of the images' losses, as of the last `read`.
        correct: how many images were classified rightly.
        images: how many there were.
    """

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    _unread: list[PendingSums] = field(default_factory=list)

    def add(self, losses: Tensor, correct: Tensor, sizes: Sequence[int], first_step: int = 0) -> None:
        """Add batches of these sizes: the mean loss of each (steps,), and the right answers of all of them."""
        losses, correct, arrived = losses.detach(), correct.detach(), None
        if losses.is_cuda:
            losses, correct = (_pinned(values).copy_(values, non_blocking=True) for values in (losses, correct))
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._unread.append(PendingSums(losses, correct, sizes, first_step, arrived))

    def add_batch(self, loss: Tensor, logits: Tensor, labels: Tensor, step: int = 0) -> None:
        """Add a batch: its mean loss (), logits (N, classes) and labels (N,)."""
        self.add(loss.reshape(1), right_answers(logits, labels), [len(labels)], step)

    def read(self, leave: int = 0) -> float:
        """Add up all but the newest `leave`; returns the step whose loss is NaN or infinite, infinity if none is."""
        failed = math.inf
        ready, self._unread = self._unread[: len(self._unread) - leave], self._unread[len(self._unread) - leave :]
        for losses, correct, sizes, first_step, arrived in ready:
            if arrived is not None:
                arrived.synchronize()
            for step, (mean, size) in enumerate(zip(losses.tolist(), sizes, strict=True), first_step):
                if size:  # one of several devices may get no image
                    self.loss += mean * size
                    failed = failed if math.isfinite(mean) else min(failed, step)
            self.correct += int(correct.sum())
            self.images += sum(sizes)
        return failed

    @property
    def mean_loss(self) -> float:
        """Of the images read so far."""
        return self.loss / self.images if self.images else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the images read so far that were classified rightly."""
        return self.correct / self.images if self.images else math.nan


def _pinned(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)  # what is copied here need not be waited for


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """How many () of the logits (N, classes) are largest at the label (N,), or at the largest probability."""
    labels = labels.argmax(dim=1) if labels.dim() > 1 else labels
    return (logits.argmax(dim=1) == labels).sum()
