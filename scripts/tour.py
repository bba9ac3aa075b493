"""A walk through convolution and pooling, C1 to C18, and a look into a LeNet that is trained on the way.

    python scripts/tour.py                    printed, and saved with its pictures as outputs/tour.html
    python scripts/tour.py data=synthetic     without the data set
    python scripts/tour.py layers=taps        the LeNet made of other layers than im2col's

Settings are those of train.py; they hold for the LeNet at the end, which trains for one epoch unless told otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from lenet.cli import compose_settings, one_line_errors
from lenet.config import Settings
from lenet.errors import UserError
from lenet.reports.page import Page
from lenet.reports.tour import add_lenet, add_stops
from lenet.training.run import build_classifier, build_data, check, run

PROJECT = Path(__file__).resolve().parent.parent
DEFAULTS = ("model=lenet_relu", "optimizer=adam", "layers=im2col", "trainer.max_epochs=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "tour.html", help="the page to write")
    arguments = parser.parse_args()
    settings = compose_settings(PROJECT, *DEFAULTS, *arguments.settings)
    check(settings)

    page = Page(
        "Convolution, step by step",
        "What a convolution is, in numbers and pictures. The layers of this project computed them, from scratch.",
    )
    add_stops(page)
    save(page, arguments.output)
    print("\nA LeNet is being trained …", file=sys.stderr)
    add_trained_lenet(page, settings)
    save(page, arguments.output)
    print(f"\nThe page, with its pictures: {arguments.output}")


def save(page: Page, path: Path) -> None:
    """Write the page as it is now."""
    try:
        page.save(path)
    except OSError as error:
        raise UserError(f"--output={path}: cannot be written ({error.strerror}); name another file") from None


def add_trained_lenet(page: Page, settings: Settings) -> None:
    """Train a LeNet and show it at work on the first test image."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(settings, Path(folder))
        checkpoint = torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)
    classifier = build_classifier(settings, torch.device("cpu"))
    classifier.load_state_dict(checkpoint["state_dict"])
    data = build_data(settings)
    _, test = data.load()
    add_lenet(page, classifier.net, test.images[0] / 255, data.classes, result["test/acc"])


if __name__ == "__main__":
    with one_line_errors():
        main()
