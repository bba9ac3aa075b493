"""Which step a network gets: the fastest one that computes what the plain one does.

Steps with kernels are used only after they were compared with the plain one on the first batch: the loss, the right
answers and every gradient. So an edit of network or loss costs speed at most, never correctness.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lenet import fast
from lenet.data import Batch, Block
from lenet.training.comparison import compare, unchanged
from lenet.training.fast_steps import FusedStep, KernelStep, RecordedStep, learning_rates, settings_of
from lenet.training.step import PlainStep

if TYPE_CHECKING:
    from lenet.training.module import Classifier

log = logging.getLogger(__name__)


def make_step(module: Classifier) -> PlainStep:
    """The fastest step for the module's network, not yet checked; the weights get the memory layout that suits it."""
    device = module.trainer.strategy.root_device.type
    if device == "cuda" and module.fuse and not fast.has_hooks(module.net):
        return RecordedStep(module)
    if device != "cpu":
        return PlainStep(module)
    step = PlainStep(module)
    if module.fuse and module.trainer.precision == "32-true":  # the kernels compute in no other
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


def changes_only_rates(optimizer: Optimizer, scheduler: LRScheduler | None) -> bool:
    """Whether a step of the schedule changes nothing of the optimizer but learning rates; both stay as they are."""
    if scheduler is None:
        return True
    state, groups = copy.deepcopy(scheduler.state_dict()), [dict(group) for group in optimizer.param_groups]
    learning_rates(optimizer, scheduler, 1)
    same = settings_of(optimizer.param_groups) == settings_of(groups)
    scheduler.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update(before)
    return same
