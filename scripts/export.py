"""Export a trained network for other programs, with a model card.

    python scripts/export.py outputs/DATE/TIME --to onnx
    python scripts/export.py RUN --to onnx exported safetensors --output FOLDER

onnx: model.onnx, for ONNX Runtime and the like. exported: model.pt2, for torch.export.load. safetensors:
model.safetensors, weights and architecture, for lenet.load. All take any number of images.

Each file is read again and compared with the network on 1,000 test images, in ONNX Runtime for ONNX. The files, a model
card (README.md) and the confusion matrix go into the folder RUN/export.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or a checkpoint")
    parser.add_argument("--to", nargs="+", choices=["onnx", "exported", "safetensors"], required=True)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/export")
    parser.add_argument("--data", metavar="CHOICE", help="a choice of the group data; default: the run's own")
    arguments = parser.parse_args()

    from lenet.inference import load  # torch loads here; a mistyped argument need not wait for that
    from lenet.inference.card import write_card
    from lenet.inference.evaluate import data_of, evaluate, save
    from lenet.inference.export import export
    from lenet.training.checkpoint import folder_of

    run = folder_of(arguments.run)
    net, data = load(arguments.run), data_of(run, arguments.data)
    found = evaluate(str(arguments.run), net, data)
    folder = arguments.output or run / "export"
    files = []
    for form in arguments.to:
        path, images, difference = export(net, form, folder, data)
        files.append(path.name)
        print(f"{path}: the same classes, logits within {difference:.1e}, on {images:,} test images")
    save(found, folder)
    print(f"Model card: {write_card(folder, files, net, data, found, run)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
