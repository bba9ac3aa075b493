import pytest
import torch
from torch import nn

from lenet.models import LeNet
from lenet.reports.page import Page
from lenet.reports.tour import add_lenet, add_stops


def test_the_stops_show_the_golden_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    add_stops(Page("", "", printed=True))
    printed = capsys.readouterr().out
    for mark, lines in {
        "C1": ["19 25", "37 43"],
        "C2": [" 5 11", "23 29"],
        "C3": [" 0  1  0  0  0 -1  0"],
        "C5": ["10      0.026     1.006    -0.966"],
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


@pytest.mark.parametrize(
    ("net", "pictures"),
    [
        (LeNet(), ["filters", "test image", "conv1: 6×28×28", "act2: 16×10×10", "pool2: 16×5×5"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), ["test image"]),
    ],
    ids=["lenet", "without convolutions"],
)
def test_the_last_stop_shows_what_a_network_has(
    net: nn.Module, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_lenet(Page("", "", printed=True), net, torch.rand(1, 28, 28), [f"class {n}" for n in range(10)], 0.5)
    printed = capsys.readouterr().out
    assert "50.0%" in printed
    assert printed.count("class ") == 3 + 1  # the best three, and the head of their table
    for picture in pictures:
        assert picture in printed
    assert printed.count("[picture: ") == (8 if len(pictures) > 1 else 1)
