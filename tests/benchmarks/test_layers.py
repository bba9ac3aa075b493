from __future__ import annotations

import json
from pathlib import Path

import torch

from lenet.benchmarks.layers import STEP, Figures, compare, peak_extra_memory, report
from lenet.benchmarks.report import save
from lenet.layers.functional import ALGORITHMS


def test_the_report_gives_each_contender_as_a_multiple_of_builtin_in_the_same_round() -> None:
    figures = Figures(
        seconds={
            ("conv1", "forward", "builtin"): [0.001, 0.002, 0.004],
            ("conv1", "forward+backward", "builtin"): [0.01, 0.01, 0.01],
            ("conv1", "forward", "im2col"): [0.002, 0.002, 0.012],
            ("conv1", "forward+backward", "im2col"): [0.02, 0.03, 0.04],
        },
        memory={("conv1", "builtin"): 3 << 20, ("conv1", "im2col"): 5 << 20},
    )
    lines = report(figures).splitlines()
    assert "3 rounds" in lines[0]
    rows = [line.split() for line in lines[4:]]
    assert rows == [
        ["conv1", "forward", "builtin", "2.00"],
        ["conv1", "forward", "im2col", "2.00", "(1.00–3.00)", "2.00"],
        ["conv1", "forward+backward", "builtin", "10.00", "3.0"],
        ["conv1", "forward+backward", "im2col", "3.00", "(2.00–4.00)", "30.00", "5.0"],
    ]


def test_every_operation_is_measured_for_every_contender(tmp_path: Path) -> None:
    figures = compare(rounds=1, batch_size=4)
    contenders = {"builtin", *ALGORITHMS}
    layers = {"conv1", "conv2", "pool1", "pool2", "pool1 max", "pool2 max"}
    expected = {
        (layer, which, name) for layer in layers for which in ("forward", "forward+backward") for name in contenders
    }
    assert set(figures.seconds) == expected | {(STEP, "forward+backward", name) for name in contenders}
    assert set(figures.memory) == {(operation, name) for operation in layers | {STEP} for name in contenders}
    kept = json.loads(save(tmp_path, "layers", report(figures), figures.as_plain()).read_text())
    assert len(kept["seconds"]) == len(figures.seconds)


def test_peak_extra_memory_is_what_was_held_at_a_time() -> None:
    def call() -> None:
        first = torch.zeros(1 << 20)
        del first
        second, third = torch.zeros(1 << 20), torch.zeros(1 << 18)
        assert second.shape != third.shape

    assert peak_extra_memory(call) == (4 << 20) + (1 << 20)
