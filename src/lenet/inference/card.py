"""A model card: what a network was trained on and how, how good it is, its limits, and how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lenet.files import read_json, write_whole
from lenet.folders import RESULT
from lenet.inference.evaluate import Evaluation
from lenet.inference.model import TrainedNetwork
from lenet.training.checkpoint import RUN_FILE, read_run

RECIPE = ("model", "init", "loss", "optimizer", "scheduler", "data", "trainer", "precision", "seed")
"""The settings that a card shows."""

LOADING = {
    "model.onnx": """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {{"images": np.zeros({shape}, np.float32)}})
""",
    "model.pt2": """
import torch

net = torch.export.load("model.pt2").module()
logits = net(torch.zeros({shape}))
""",
    "model.safetensors": """
import lenet
import torch

net = lenet.load("model.safetensors")
labels, probabilities = net.predict(torch.zeros({shape}))
""",
}
"""How each file is used, with an example of `shape`."""


def write_card(folder: Path, net: TrainedNetwork, data: object, found: Evaluation, run: Path) -> Path:
    """Write README.md for the files in a folder that `lenet.inference.export` made; returns its path.

    `found` is what the network does on the test images of `data`, and `run` the folder of its run, if it has one.
    """
    shape = (1, *net.image_shape)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    parts = [
        f"# {type(net.classifier.net).__name__}, trained on {type(data).__name__}",
        f"A network of {parameters:,} parameters that classifies images {net.image_shape}, grey, light on dark:"
        f" {', '.join(net.classes)}.",
        "## Data",
        getattr(data, "source", "Unknown."),
        *(_recipe(read_run(run), run) if (run / RUN_FILE).is_file() else ()),
        *_results(found),
        "## How to load it",
        "Images are float32 from 0 to 1, any number at once; the logits are in the order of the classes above.",
        *(f"```python{code.format(shape=shape)}```" for name, code in LOADING.items() if (folder / name).exists()),
        "## Licence",
        "The program that trained it has the MIT licence. For the data, see above.",
    ]
    write_whole(folder / "README.md", ("\n\n".join(parts) + "\n").encode())
    return folder / "README.md"


def _recipe(content: Mapping[str, Any], run: Path) -> list[str]:
    """How the network was trained."""
    settings = {name: content["settings"].get(name) for name in RECIPE}
    settings["data"] = {name: value for name, value in settings["data"].items() if name not in ("root", "mirrors")}
    commit = (content.get("git") or {}).get("commit", "unknown")
    packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    done = read_json(run / RESULT) if (run / RESULT).is_file() else {}
    length = [f"{done['epochs']} epochs, {done['seconds']:.0f} seconds on {done['device']}."] if done else []
    return [
        "## Recipe",
        f"`{' '.join(content['command'])}`, commit {commit}, with {packages}.",
        *length,
        f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(settings))}```",
    ]


def _results(found: Evaluation) -> list[str]:
    """What it does on the test images, and its limits."""
    measures, classes = found.measures, found.classes
    accuracies = measures["acc_by_class"]
    weakest = min(classes, key=lambda name: accuracies[name])
    mistakes = found.confusion.clone().fill_diagonal_(0)
    true, taken_for = divmod(int(mistakes.argmax()), len(classes))
    return [
        "## Results on the test images",
        _table({"images": len(found.labels), "accuracy": measures["acc"], "loss": measures["loss"]}),
        _table({"class": "accuracy", **accuracies}),
        "![Confusion matrix](confusion.png)",
        "## Limits",
        f"- It knows these {len(classes)} classes alone, and takes any other picture for one of them.",
        f"- Its weakest class is {weakest}: {accuracies[weakest]:.1%} of these images are recognised. The most frequent"
        f" mistake is {classes[true]} taken for {classes[taken_for]}: {int(mistakes.max())} images.",
        f"- Its probabilities are off by {measures['calibration_error']:.3f} on average (expected calibration error).",
        "- It was tested on images like those that it was trained on. Expect less of photographs.",
    ]


def _table(values: Mapping[str, Any]) -> str:
    """Two columns, the first pair as the head."""
    rows = [
        f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in values.items()
    ]
    return "\n".join([rows[0], "|---|---|", *rows[1:]])
