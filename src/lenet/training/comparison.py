"""Whether a fast step computes what the plain one does: the loss, the right answers and every gradient of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""How far a gradient of the fast step may be from the plain one, as a share of its norm. Rounding makes about 1e-5."""


class Measured(NamedTuple):
    """What a step computes of a batch: its mean loss, how many answers are right, the gradients by parameter."""

    loss: Tensor
    correct: Tensor
    gradients: dict[str, Tensor | None]


class Step(Protocol):
    """What can be compared."""

    def measure(self, images: Tensor, labels: Tensor) -> Measured: ...


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put buffers (the statistics of a batch normalisation) and random numbers back at the end, and drop gradients."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    gpus = {each.device for each in module.parameters() if each.is_cuda}
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(0)  # the same dropout for each step that is compared
        yield
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    module.zero_grad(set_to_none=True)


def gradients_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A copy of each parameter's gradient."""
    named = module.named_parameters()
    return {name: None if each.grad is None else each.grad.clone() for name, each in named}


def compare(plain: Step, other: Step, images: Tensor, labels: Tensor) -> str | None:
    """What differs between two steps on a batch of bytes, by more than rounding; None if nothing does."""
    # Where pixels are equal, so are values in a window, and rounding would decide which is the largest: noise does.
    noise = torch.randint(8, images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    images = (images.int() * 31 // 32 + noise).byte()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # a GPU would convolve with 10 of 23 bits
    loss, correct, gradients = plain.measure(images, labels)
    torch.backends.cudnn.allow_tf32 = tf32
    its_loss, its_correct, its_gradients = other.measure(images, labels)
    if not torch.isclose(loss, its_loss, rtol=TOLERANCE):
        return f"loss: {its_loss:.6g} instead of {loss:.6g}"
    if abs(int(correct) - int(its_correct)) > 0.01 * len(labels):  # rounding may decide between two equal logits
        return f"number of right answers: {int(its_correct)} instead of {int(correct)}"
    largest = max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)
    for name, gradient in gradients.items():
        its = its_gradients[name]
        if (gradient is None) != (its is None):
            return f"gradient of {name}: only one step has one"
        if gradient is not None and its is not None:
            distance = float((gradient - its).norm())
            # The gradient of a bias before a normalisation is zero, but for rounding.
            if not distance <= TOLERANCE * (float(gradient.norm()) + 1e-2 * largest):
                return f"gradient of {name}"
    return None
