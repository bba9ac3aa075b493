from __future__ import annotations

import pytest

from lenet.reports.page import Page
from lenet.reports.tour import add_stops


def test_the_stops_show_the_golden_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    add_stops(Page("", ""))
    printed = capsys.readouterr().out
    for mark, lines in {
        "C1": ["19 25", "37 43"],
        "C2": [" 5 11", "23 29"],
        "C5": ["step 10: loss   0.026, kernel [1.006, -0.966]"],
        "C3": [" 0  1  0  0  0 -1  0"],
        "C6": [" 56  72", "104 120"],
        "C7": [" 56  72        76 100            96 128", "104 120       148 172           192 224"],
        "C9": ["8×8", "4×4", "2×2"],
        "C14": ["4 5       2 3", "7 8       5 6"],
        "C15": ["10", " 5  7", "13 15", " 1  3", " 9 11"],
        "C16": [" 5  7        6  8", "13 15       14 16"],
    }.items():
        section = printed.split(f"\n{mark}  ")[1].split("\nC")[0]
        for line in lines:
            assert line in section, f"{mark}: {line}"
