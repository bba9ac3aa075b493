import math

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from lenet.training.schedules import cosine, onecycle


def optimizer(lr: float = 0.5, momentum: float = 0.0) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    """The learning rate of each step, and the one after the last."""
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return [*found, schedule.optimizer.param_groups[0]["lr"]]


def test_cosine_follows_the_formula() -> None:
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    assert rates(cosine(optimizer(), 8, final_lr=0.1), 8) == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["cos", "linear"])
def test_onecycle_peaks_at_the_optimizers_rate_after_the_warmup_and_ends_near_zero(shape: str) -> None:
    found = rates(onecycle(optimizer(), 100, warmup_fraction=0.2, shape=shape), 100)  # type: ignore[arg-type]
    assert max(found) == pytest.approx(0.5, rel=0.02)
    assert found.index(max(found)) == pytest.approx(20, abs=1)
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[-1] == pytest.approx(0.5 / 25e4)


@pytest.mark.parametrize("warmup_fraction", [0.05, 0.3, 0.95])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_short_runs_have_rates_between_zero_and_the_highest(steps: int, warmup_fraction: float) -> None:
    for schedule in (cosine(optimizer(), steps), onecycle(optimizer(), steps, warmup_fraction)):
        assert all(0 < rate <= 0.5 for rate in rates(schedule, steps)[:-1])


@pytest.mark.parametrize("make", [cosine, onecycle])
def test_a_run_that_is_made_longer_follows_the_longer_schedule_from_where_it_is(make: type[LRScheduler]) -> None:
    short = make(optimizer(), 10)
    rates(short, 10)
    longer = make(optimizer(), 20)
    longer.load_state_dict(short.state_dict())
    whole = rates(make(optimizer(), 20), 20)
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr()[0] == pytest.approx(whole[11])
