"""Losses and correct answers, counted without waiting for the device.

They stay on the device, and are read at log points alone: reading a number waits for the device, and Lightning's own
logging on every step costs more than LeNet's step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums over the images added since it was made, as of the last `read`; until then they stay on the device.

    Attributes:
        loss_sum: of the images' cross entropies.
        correct: how many images were classified rightly.
        images: how many there were.
    """

    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    _unread: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in one batch, without waiting for the device: its summed loss (), logits (N, 10), labels (N,)."""
        self._unread.append((loss_sum.detach(), logits.detach(), labels))

    def read(self) -> list[float]:
        """Wait for the device and add up; returns the summed loss of each batch since the last call."""
        if not self._unread:
            return []
        # All batches at once: the class that each image was given is not looked for step by step.
        loss_sums, logits, labels = (list(values) for values in zip(*self._unread, strict=True))
        losses: list[float] = torch.stack(loss_sums).tolist()
        right = torch.cat(logits).argmax(dim=1) == torch.cat(labels)
        # One after the other: the sum does not depend on how often it was read. (Python's sum() rounds otherwise.)
        for loss in losses:
            self.loss_sum += loss
        self.correct += int(right.sum())
        self.images += len(right)
        self._unread.clear()
        return losses

    @property
    def loss(self) -> float:
        """Mean cross entropy of the images read so far."""
        return self.loss_sum / self.images if self.images else math.nan

    @property
    def acc(self) -> float:
        """Share of the images read so far that were classified rightly."""
        return self.correct / self.images if self.images else math.nan
