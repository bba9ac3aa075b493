"""Learning-rate schedules over a whole run, stepped after each optimizer step.

Each takes the optimizer, whose learning rate is the highest one reached, and the number of steps in the run.
"""

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR


def cosine(optimizer: Optimizer, total_steps: int, final_lr: float = 0.0) -> CosineAnnealingLR:
    """From the optimizer's learning rate to `final_lr` along half a cosine.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), without the restarts.
    """
    return CosineAnnealingLR(optimizer, T_max=total_steps, eta_min=final_lr)


def onecycle(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.3, shape: Literal["cos", "linear"] = "cos"
) -> OneCycleLR:
    """Up to the optimizer's learning rate over `warmup_fraction` of the run, then down to almost zero.

    Either way along half a cosine or a straight line. Smith and Topin, "Super-convergence" (2018). The momentum is left
    as the user set it: SGD without momentum would otherwise silently get one.
    """
    highest = [group["lr"] for group in optimizer.param_groups]
    points = total_steps + 1  # the last is for what comes after the last step: PyTorch's own would go below zero
    if warmup_fraction * points == 1:
        warmup_fraction = 1.5 / points  # a warm-up of one point is a division by zero there
    return OneCycleLR(
        optimizer, highest, total_steps=points, pct_start=warmup_fraction, anneal_strategy=shape, cycle_momentum=False
    )
