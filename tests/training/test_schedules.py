import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch.optim import SGD

from lenet.training import schedules as schedulers


def optimizer(lr: float = 0.5, momentum: float = 0.0) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_cosine_follows_the_formula() -> None:
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates(schedulers.cosine(optimizer(), 8, final_lr=0.1), 8) == pytest.approx(expected)


def test_onecycle_peaks_at_the_optimizers_rate_after_the_warmup_and_ends_near_zero() -> None:
    found = rates(schedulers.onecycle(optimizer(), 100, warmup_fraction=0.2), 100)
    assert max(found) == pytest.approx(0.5, rel=1e-3)
    assert found.index(max(found)) == pytest.approx(20, abs=1)
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[-1] < 0.5 / 400


def test_a_linear_onecycle_goes_up_and_down_in_equal_steps() -> None:
    found = rates(schedulers.onecycle(optimizer(), 100, warmup_fraction=0.2, shape="linear"), 100)
    differences = [later - earlier for earlier, later in pairwise(found)]
    assert differences[:18] == pytest.approx([differences[0]] * 18)
    assert differences[21:] == pytest.approx([differences[-1]] * 78)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_onecycle_leaves_the_momentum(momentum: float) -> None:
    sgd = optimizer(momentum=momentum)
    rates(schedulers.onecycle(sgd, 10), 5)
    assert sgd.param_groups[0]["momentum"] == momentum


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs(steps: int) -> None:
    for schedule in (schedulers.cosine, schedulers.onecycle):
        assert all(math.isfinite(rate) for rate in rates(schedule(optimizer(), steps), steps))


@pytest.mark.parametrize("shape", ["cos", "linear"])
@pytest.mark.parametrize(("steps", "warmup_fraction"), [(19, 0.05), (4, 0.2), (20, 0.05), (1, 0.5), (0, 0.3)])
def test_onecycle_is_never_negative_and_ends_at_almost_zero(
    steps: int, warmup_fraction: float, shape: Literal["cos", "linear"]
) -> None:
    scheduler = schedulers.onecycle(optimizer(), steps, warmup_fraction, shape)
    assert all(rate > 0 for rate in rates(scheduler, steps))
    assert 0 <= scheduler.get_last_lr()[0] <= 0.5
