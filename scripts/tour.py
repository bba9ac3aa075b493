"""A tour of convolution and pooling, C0 to C18, and of networks that are trained at the end.

    python scripts/tour.py                    printed, and saved with its pictures as outputs/tour.html
    python scripts/tour.py data=synthetic     without the data set
    python scripts/tour.py layers=taps        with another convolution algorithm than im2col in the LeNet

The settings are those of train.py. They apply to the LeNet, which trains for one epoch by default.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from torch import nn

from lenet.classes import build
from lenet.cli import one_line_errors
from lenet.config import PROJECT, Settings, compose_settings
from lenet.data import ImageDataModule
from lenet.errors import UserError
from lenet.inference import load
from lenet.models import LeNet
from lenet.reports.explain import add_explanation
from lenet.reports.page import Page
from lenet.reports.tour import add_stops
from lenet.reports.why import add_shifts
from lenet.training.module import Classifier
from lenet.training.parts import data_of, trainer_of
from lenet.training.run import check, run

DEFAULTS = ("model=lenet_relu", "optimizer=adam", "layers=im2col", "trainer.max_epochs=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "tour.html", help="file of the page")
    arguments = parser.parse_args()
    settings = compose_settings(*DEFAULTS, *arguments.settings)
    check(settings)

    introduction = "What a convolution is, in numbers and pictures. This project's layers computed all of them."
    page = Page("Convolution, step by step", introduction, printed=True)
    add_stops(page)
    page.save(arguments.output)
    print("\nTraining a LeNet …", file=sys.stderr)
    add_trained_lenet(page, settings)
    page.save(arguments.output)
    print(f"\nPage with pictures: {arguments.output}")


def add_trained_lenet(page: Page, settings: Settings) -> None:
    """Train a LeNet, and show what it makes of the first test image, and of shifted images."""
    data = data_of(settings)
    if not isinstance(data, ImageDataModule):
        raise UserError(f"data: the tour needs a data set of images, not {type(data).__name__}; try data=synthetic")
    data.setup()
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(settings, Path(folder))
        network = load(folder)
    net = network.classifier.net
    page.section("LeNet", "A trained network")
    page.text(f"This network was trained just now. Its accuracy on the test images is {metrics['test/acc']:.1%}.")
    page.code(str(net))
    add_explanation(page, network, data.images("test").images[:1], data.train_dataloader())
    if isinstance(net, LeNet) and data.image_shape == (1, 28, 28):
        unpooled = build("model", settings.section("model"))
        unpooled.pool1 = unpooled.pool2 = nn.MaxPool2d(1, stride=2)  # of each window the first value alone
        connected = nn.Sequential(nn.Flatten(), nn.Linear(784, 77), nn.ReLU(), nn.Linear(77, 10))
        nets = {
            "LeNet": net,
            "LeNet without pooling": trained(unpooled, settings),
            "fully connected": trained(connected, settings),
        }
        add_shifts(page, net.conv1, nets, data.images("test"))


def trained(net: nn.Module, settings: Settings) -> nn.Module:
    """Another network, trained as the LeNet was."""
    classifier = Classifier(net, settings.section("optimizer"), loss=settings.section("loss"), seed=settings.seed)
    trainer = trainer_of(settings, logger=False, enable_checkpointing=False)
    trainer.fit(classifier, datamodule=data_of(settings))
    return classifier.net.eval().cpu()


if __name__ == "__main__":
    with one_line_errors():
        main()
