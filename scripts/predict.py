"""Predict the class of pictures: any format, colour or size, on a light or a dark ground.

    python scripts/predict.py outputs/DATE/TIME shoe.jpg
    python scripts/predict.py RUN FOLDER --csv > classes.csv            all pictures in a folder
    python scripts/predict.py RUN shoe.jpg --page                       what the network sees, in predictions.html

Each picture is made grey, 28×28 and light on dark, as the images of Fashion-MNIST are. A file that is no picture is
named and skipped; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lenet.cli import one_line_errors
from lenet.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or a checkpoint")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE|FOLDER")
    parser.add_argument("--invert", choices=["auto", "yes", "no"], default="auto", help="default: by the border")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object a line")
    form.add_argument("--csv", action="store_true", help="a table with all probabilities")
    parser.add_argument("--page", action="store_true", help="also write predictions.html, with what the network sees")
    arguments = parser.parse_args()

    import torch  # loads here; a mistyped argument need not wait for that

    from lenet.data.pictures import read_picture
    from lenet.inference import load

    net, seen, skipped = load(arguments.run), {}, 0
    files = [file for path in arguments.pictures for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for file in tqdm([file for file in files if not file.is_dir()], disable=not sys.stderr.isatty(), leave=False):
        try:
            seen[file] = read_picture(file, arguments.invert)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            skipped += 1
    if not seen:
        raise UserError(f"{', '.join(map(str, arguments.pictures))}: no picture found")
    _, probabilities = net.predict(torch.stack(list(seen.values())))
    results = [dict(zip(net.classes, row, strict=True)) for row in probabilities.tolist()]
    write(list(seen), results, "json" if arguments.json else "csv" if arguments.csv else "text")
    if arguments.page:
        save_page({str(file): image for file, image in seen.items()}, results)
    sys.exit(1 if skipped else 0)


def best_three(result: dict[str, float]) -> str:
    likely = sorted(result, key=lambda name: -result[name])[:3]
    return ", ".join(f"{name} {result[name]:.1%}" for name in likely)


def write(files: list[Path], results: list[dict[str, float]], form: str) -> None:
    if form == "csv":
        table = csv.writer(sys.stdout)
        table.writerow(["file", "class", *results[0]])
        for file, result in zip(files, results, strict=True):
            table.writerow([file, max(result, key=lambda name: result[name]), *result.values()])
        return
    for file, result in zip(files, results, strict=True):
        if form == "json":
            likeliest = max(result, key=lambda name: result[name])
            print(json.dumps({"file": str(file), "class": likeliest, "probabilities": result}, ensure_ascii=False))
        else:
            print(f"{file}: {best_three(result)}")


def save_page(seen: dict[str, Any], results: list[dict[str, float]]) -> None:
    """Write predictions.html: each picture as the network sees it, with its likeliest classes."""
    from lenet.monitor.drawing import Tile, sheet
    from lenet.reports.page import Page

    page = Page("Predictions", "Each picture as the network sees it, and the three likeliest classes.")
    page.section("Pictures")
    tiles = []
    for (name, image), result in zip(seen.items(), results, strict=True):
        tiles.append(Tile("\n".join([Path(name).name, *best_three(result).split(", ")]), image.numpy()))
    page.picture(sheet(tiles, width=860, per_row=5), "Dark is large.")
    page.save(Path("predictions.html"))
    print("Page: predictions.html", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
