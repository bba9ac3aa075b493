from __future__ import annotations

import torch

from lenet.benchmarks.layers import CONTENDERS, compare, peak_extra_memory, report


def test_the_report_divides_the_times_of_the_same_round() -> None:
    times = {"conv1": {"builtin": [0.01, 0.02, 0.04], "im2col": [0.02, 0.06, 0.04]}}
    lines = report(times, {"conv1": {"builtin": 3 << 20, "im2col": 5 << 20}}).splitlines()
    assert "3 rounds" in lines[0]
    assert [line.split() for line in lines[2:]] == [
        ["conv1", "builtin", "20.00", "3.0"],
        ["conv1", "im2col", "2.00", "(1.00–3.00)", "40.00", "5.0"],
    ]


def test_every_operation_is_measured_for_every_contender() -> None:
    times, memory = compare(rounds=2, batch_size=4)
    expected = {"training step", "conv1", "conv2", "pool1", "pool2", "pool1 max", "pool2 max"}
    assert set(times) == set(memory) == expected
    for operation in expected:
        assert set(times[operation]) == set(memory[operation]) == set(CONTENDERS)
        assert all(len(seconds) == 2 for seconds in times[operation].values())


def test_peak_extra_memory_counts_what_is_held_at_the_same_time() -> None:
    def call() -> None:
        first = torch.zeros(1 << 20)
        del first
        second, third = torch.zeros(1 << 20), torch.zeros(1 << 18)
        assert second.shape != third.shape

    assert peak_extra_memory(call) == (4 << 20) + (1 << 20)
