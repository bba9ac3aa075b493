"""Optimizer steps as a CUDA graph: recorded once, then started as a whole.

A step of LeNet is some hundred short operations. Launched one by one from Python, they keep a GPU waiting for most of
the time; a graph launches all of them at once. It does the same again each time, so what differs from step to step lies
in tensors on the device: which images, and the learning rate. What the step does in Python happens only once.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

log = logging.getLogger(__name__)

WARM_UP = 3
"""How many steps of a size are taken one by one before one is recorded: libraries set themselves up in the first."""

WAITS = "called a synchronizing CUDA operation"
"""PyTorch's warning."""

CAPACITY = 64
"""For how many steps there is room on the device: their images, learning rates and results."""


def is_recordable(optimizer: Optimizer) -> bool:
    """Whether its step never waits for the device: an optimizer's groups say so by a key `capturable`, but SGD's."""
    return type(optimizer) is SGD or all("capturable" in group for group in optimizer.param_groups)


ForwardBackward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels to the mean loss () and the number of right answers (); leaves the gradients."""


class RecordedSteps:
    """Steps with batches of one size.

    Args:
        forward_backward: forward, loss and backward; it has to set gradients anew, not add to what was there.
        optimizer: its step belongs to what is recorded. Its learning rates stay plain numbers outside of it.
        images, labels: of which batches are taken: all training images, on the device.
        size: of a batch.
    """

    def __init__(
        self, forward_backward: ForwardBackward, optimizer: Optimizer, images: Tensor, labels: Tensor, size: int
    ) -> None:
        self._forward_backward, self._optimizer = forward_backward, optimizer
        self._images, self._labels = images, labels
        groups, device = len(optimizer.param_groups), images.device
        self._order = torch.zeros(CAPACITY, size, dtype=torch.int64, device=device)
        self._rates = torch.zeros(CAPACITY, groups, device=device)
        self._losses, self._correct = torch.zeros(CAPACITY, device=device), torch.zeros(CAPACITY, device=device)
        self._places, self._place = torch.arange(CAPACITY, device=device), torch.zeros(1, dtype=torch.int64).to(device)
        self._rate = torch.zeros(groups, device=device)  # a number would be recorded as it is now
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._gradients: list[Tensor | None] = []
        self._warm, self._replay, self.is_refused = 0, self._step, False

    def __call__(self, order: Tensor, rates: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
        """Take a step for each of the `rates`, which are those of the optimizer's groups, with these images in order.

        Returns the mean losses (steps,) and the numbers of right answers (steps,), on the device.
        """
        size, results = self._order.shape[1], []
        for first in range(0, len(rates), CAPACITY):
            some = rates[first : first + CAPACITY]
            self._order[: len(some)] = order[first * size : (first + len(some)) * size].view(len(some), size)
            self._rates[: len(some)].copy_(without_waiting(torch.tensor(some), self._rates.device))
            self._place.zero_()
            for _ in some:
                if self._warm == WARM_UP - 1:
                    self._refuse(synchronizing_operation(self._replay, self._images.device))
                else:
                    if self._warm == WARM_UP and not self.is_refused:
                        self._record()
                    self._replay()
                self._warm += 1
            results.append((self._losses[: len(some)].clone(), self._correct[: len(some)].clone()))
        for parameter, gradient in zip(self._parameters, self._gradients, strict=False):
            parameter.grad = gradient  # those that the graph writes, not those of a step of another size
        losses, correct = zip(*results, strict=True)
        return torch.cat(losses), torch.cat(correct)

    def _step(self) -> None:
        """One step at `_place`, and on to the next: only operations on the device, nothing that waits for it."""
        with side_stream(self._images.device):
            indices = self._order.index_select(0, self._place).view(-1)
            labels = self._labels.index_select(0, indices)
            loss, correct = self._forward_backward(self._images.index_select(0, indices), labels)
            self._rate.copy_(self._rates.index_select(0, self._place).view(-1))
            with _on_device(self._optimizer, self._rate):
                self._optimizer.step()
            here = self._places == self._place
            self._losses.copy_(torch.where(here, loss, self._losses))
            self._correct.copy_(torch.where(here, correct, self._correct))
            self._place += 1

    def _record(self) -> None:
        try:
            self._replay = record(self._step, self._images.device)
            self._gradients = [parameter.grad for parameter in self._parameters]
        except RuntimeError as error:
            self._refuse(str(error.__context__ or error))

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self.is_refused, line = True, reason.strip().partition("\n")[0]
            log.warning("fuse=true: this step cannot be recorded in a CUDA graph, which is slower: %s", line)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what a step does on the device; returns what does it again. Nothing is computed here.

    Raises a RuntimeError if an operation cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as TensorBoard's, may go on meanwhile. If it fails, PyTorch leaves its stream as the current
    # one, hence the outer context; and before 2.12 random numbers as if they were recorded, until the next success.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            with torch.cuda.graph(graph, stream=_recording_stream(device), capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_recording_stream(device)):
                torch.zeros(1, device=device)
            raise
    return graph.replay


def synchronizing_operation(step: Callable[[], None], device: torch.device) -> str | None:
    """Take a step; returns what PyTorch says of an operation that waits for the device, None if none does."""
    if device.type != "cuda":
        step()
        return None
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return next((str(each.message) for each in caught if WAITS in str(each.message)), None)


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """The values of the CPU on the device; what that is busy with goes on."""
    return values.to(device) if device.type != "cuda" else values.pin_memory().to(device, non_blocking=True)


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The one on which steps are recorded, and taken before that."""
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]


def side_stream(device: torch.device) -> AbstractContextManager[None]:
    """What is launched inside waits for what was launched before, and what is launched afterwards for that."""
    return nullcontext() if device.type != "cuda" else _side_stream(device)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    own, current = _recording_stream(device), torch.cuda.current_stream(device)
    if own == current:  # it is being recorded
        yield
        return
    own.wait_stream(current)
    with torch.cuda.stream(own):
        yield
    current.wait_stream(own)


@contextmanager
def _on_device(optimizer: Optimizer, rates: Tensor) -> Iterator[None]:
    """The optimizer with its learning rates in tensors, as it has to be while it is recorded."""
    own = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
        elif not (group.get("foreach") or group.get("differentiable")):
            group["fused"] = True  # the other ways of SGD ask the device for the rate
    for state in optimizer.state.values():
        if isinstance(step := state.get("step"), Tensor) and step.device != rates.device:
            state["step"] = step.to(rates.device)  # before it was recordable, it was counted on the CPU
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, own, strict=True):
            group.update(values)
