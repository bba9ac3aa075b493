import pytest
import torch

from lenet.data.synthetic import draw
from lenet.models import LeNet
from lenet.reports.page import Page
from lenet.reports.tour import add_stops
from lenet.reports.why import add_shifts, shifted


def test_the_stops_show_the_golden_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    add_stops(Page("", "", printed=True))
    printed = capsys.readouterr().out
    for mark, lines in {
        "C0": ["614,656", "3,025", "near alone       25"],
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


def test_a_layer_without_places_computes_the_same_map_as_a_convolution(capsys: pytest.CaptureFixture[str]) -> None:
    add_stops(Page("", "", printed=True))
    section = capsys.readouterr().out.split("\nC0  ")[1].split("\nC1")[0]
    differences = [float(line.split()[-1]) for line in section.splitlines() if line.startswith("    V[")]
    assert len(differences) == 3
    assert max(differences) < 1e-5


def test_images_are_shifted_to_the_right_with_zeros_behind() -> None:
    image = torch.arange(1.0, 7.0).view(2, 3)
    assert shifted(image, 1).tolist() == [[0, 1, 2], [0, 4, 5]]
    assert shifted(image, -2).tolist() == [[3, 0, 0], [6, 0, 0]]
    assert shifted(image, 0).tolist() == image.tolist()


def test_the_maps_move_along_and_networks_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    nets = {"LeNet": LeNet(), "another": LeNet()}
    add_shifts(Page("", "", printed=True), nets["LeNet"].conv1, nets, draw(60, seed=1))
    printed = capsys.readouterr().out
    difference = printed.split("away from the edges: ")[1].split()[0]
    assert float(difference) < 1e-5
    assert printed.count("61,706") == 2
