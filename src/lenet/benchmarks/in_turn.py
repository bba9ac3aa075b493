"""Contenders that take turns: in each round another one begins, so that a change of the machine's speed affects all."""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

Tasks = Mapping[str, Mapping[str, Callable[[], float]]]
"""By task and contender: what measures one number."""

Numbers = dict[str, dict[str, list[float]]]
"""By task and contender: a number for each round."""


def in_turn(tasks: Tasks, rounds: int) -> Numbers:
    """Measure all contenders of all tasks in each round."""
    numbers: Numbers = {task: {name: [] for name in contenders} for task, contenders in tasks.items()}
    for count in range(rounds):
        for task, contenders in tasks.items():
            names, first = list(contenders), count % len(contenders)
            for name in names[first:] + names[:first]:
                numbers[task][name].append(contenders[name]())
        print(f"round {count + 1} of {rounds}", flush=True)
    return numbers


def report(numbers: Numbers, base: str, unit: str, number_format: str, more_is_faster: bool) -> str:
    """A table: the numbers of each contender, and how many times as slow as the contender `base` it is.

    The ratio is taken in each round: a machine that is slow for a while then slows both numbers.
    """
    rounds = len(next(iter(numbers.values()))[base])
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    machine = f"{platform.machine()} ({capability}), {threads} threads, torch {torch.__version__}"
    machine += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    lines = [f"Median (lowest–highest) of {rounds} rounds on {machine}"]
    for task, contenders in numbers.items():
        lines.append(f"{task:<20}{unit:<28}time as a multiple of {base}'s")
        for name, values in contenders.items():
            pairs = zip(contenders[base], values, strict=True)
            ratios = [own / other if more_is_faster else other / own for own, other in pairs]
            ratio = "" if name == base else _spread(ratios, ".2f")
            lines.append(f"  {name:<18}{_spread(values, number_format):<28}{ratio}".rstrip())
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
