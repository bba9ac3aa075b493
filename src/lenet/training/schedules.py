"""Learning-rate schedules over a whole run, stepped after each optimizer step.

Each takes the optimizer, whose learning rate is the highest one reached, and the number of steps in the run. The rate
is a function of the step alone, so a run that is made longer follows the longer schedule from where it is.
"""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine(optimizer: Optimizer, total_steps: int, final_lr: float = 0.0) -> LambdaLR:
    """From the optimizer's learning rate to `final_lr` along half a cosine.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), without the restarts.
    """
    final = final_lr / optimizer.param_groups[0]["lr"]
    return LambdaLR(optimizer, lambda step: _between(1.0, final, step / total_steps, "cos"))


def onecycle(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.3, shape: Literal["cos", "linear"] = "cos"
) -> LambdaLR:
    """From 1/25 of the optimizer's learning rate up to it over `warmup_fraction` of the run, then down to almost zero.

    Either way along half a cosine or a straight line. Smith and Topin, "Super-convergence" (2018). The momentum stays
    as it is.
    """
    if shape not in ("cos", "linear"):
        raise ValueError(f"shape={shape}: should be cos or linear")
    peak = warmup_fraction * (total_steps + 1) - 1

    def factor(step: int) -> float:
        if step < peak:
            return _between(1 / 25, 1.0, step / peak, shape)
        return _between(1.0, 1 / 25e4, (step - peak) / (total_steps - peak), shape)

    return LambdaLR(optimizer, factor)


def _between(start: float, end: float, share: float, shape: str) -> float:
    share = min(share, 1.0)
    return start + (end - start) * (share if shape == "linear" else (1 - math.cos(math.pi * share)) / 2)
