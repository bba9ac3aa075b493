"""Evaluate trained runs: loss, accuracy, accuracy of each class, calibration error, confusion matrix.

    python scripts/evaluate.py outputs/DATE/TIME                        on the test images
    python scripts/evaluate.py RUN RUN --ensemble                       side by side, and together
    python scripts/evaluate.py RUN --split val
    python scripts/evaluate.py RUN --data synthetic                     on another data set of the same shape

A run is a folder, or a checkpoint in it. evaluation.json and confusion.png are written into each run's folder, those of
an ensemble into the current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="default: test")
    parser.add_argument("--data", metavar="CHOICE", help="a choice of the group data; default: the run's own")
    parser.add_argument("--ensemble", action="store_true", help="also the mean of the runs' probabilities")
    arguments = parser.parse_args()

    from lenet.inference import load  # torch loads here; a mistyped argument need not wait for that
    from lenet.inference.evaluate import comparison, data_of, ensemble, evaluate, save
    from lenet.training.checkpoint import folder_of

    evaluations = []
    loaded = [(run, load(run), data_of(folder_of(run), arguments.data)) for run in arguments.runs]
    for run, net, data in loaded:
        folder = folder_of(run)
        if net.classes != tuple(getattr(data, "class_names", net.classes)):
            print(f"{run}: was trained on other classes than these data have")
        found = evaluate(str(run), net, data, arguments.split)
        print(f"Written: {save(found, folder)}")
        evaluations.append(found)
    if arguments.ensemble:
        evaluations.append(ensemble(evaluations))
        print(f"Written: {save(evaluations[-1], Path())}")
    print(comparison(evaluations))


if __name__ == "__main__":
    with one_line_errors():
        main()
