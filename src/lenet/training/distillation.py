"""Distillation: a network learns from the answers of trained ones, beside the labels.

An answer says more of an image than its label: that a shirt resembles a coat, for example. Hinton, Vinyals and Dean,
"Distilling the knowledge in a neural network" (2015).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Distillation:
    """Adds the teachers' answers to a loss.

    Args:
        teachers: from images (N, C, H, W), floats in [0, 1], to logits (N, classes). They see the same augmented images
            as the network that learns.
        temperature: divides all logits: the higher it is, the more the smaller probabilities count.
        weight: of the teachers' answers; the loss has the rest.
    """

    def __init__(self, teachers: Sequence[nn.Module], temperature: float, weight: float) -> None:
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.temperature, self.weight = temperature, weight

    def __call__(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """(1 - weight) · loss + weight · temperature² · KL(teachers' mean probabilities ‖ the network's), ()."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        with torch.no_grad():
            answers = [teacher.to(images.device)(images) / self.temperature for teacher in self.teachers]
            expected = torch.stack([answer.softmax(dim=1) for answer in answers]).mean(dim=0)
        own = (logits / self.temperature).log_softmax(dim=1)
        distance = F.kl_div(own, expected, reduction="batchmean") * self.temperature**2
        return torch.lerp(loss, distance, self.weight)
