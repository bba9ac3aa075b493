"""Explain what a trained network makes of one picture, on a page.

    python scripts/explain.py outputs/DATE/TIME shoe.jpg
    python scripts/explain.py RUN 7                             the test image number 7, counted from 0

The page shows the prediction, the pixels that it depends on, what each stage makes of the picture, and the training
images that are most like it to the network. It is one file, explanation.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors
from lenet.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or a checkpoint")
    parser.add_argument("picture", metavar="PICTURE|NUMBER", help="a file, or the number of a test image")
    parser.add_argument("--invert", choices=["auto", "yes", "no"], default="auto", help="default: by the border")
    parser.add_argument("--data", metavar="CHOICE", help="a choice of the group data; default: the run's own")
    parser.add_argument("--output", type=Path, default=Path("explanation.html"), help="file of the page")
    arguments = parser.parse_args()

    from lenet.data.pictures import read_picture
    from lenet.inference import load  # torch loads here; a mistyped argument need not wait for that
    from lenet.inference.evaluate import batches, data_of
    from lenet.reports.explain import add_explanation
    from lenet.reports.page import Page
    from lenet.training.checkpoint import folder_of

    net, data = load(arguments.run), data_of(folder_of(arguments.run), arguments.data)
    name = arguments.picture
    if name.isdecimal() and not Path(name).exists():
        tests = [pair for images, labels in batches(data, "test") for pair in zip(images, labels, strict=True)]
        if int(name) >= len(tests):
            raise UserError(f"{name}: there are {len(tests):,} test images, counted from 0")
        image, label = tests[int(name)]
        name = f"Test image {name}: {net.classes[label]}"
    else:
        image = read_picture(Path(name), arguments.invert)[None]
    page = Page(name, "What a trained network makes of one picture.")
    add_explanation(page, net, image, batches(data, "train"))
    page.save(arguments.output)
    print(f"Page: {arguments.output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
