"""A model card: what a network was trained on and how, how good it is, its limits, and how to load it (card.md)."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template
from omegaconf import OmegaConf

from lenet.files import write_whole
from lenet.folders import RESULT
from lenet.inference.evaluate import Evaluation
from lenet.inference.model import TrainedNetwork
from lenet.training.checkpoint import RUN_FILE, read_result, read_run

RECIPE = (
    *("model", "init", "loss", "optimizer", "decay", "scheduler", "data", "augment", "average", "distill"),
    *("trainer", "precision", "seed"),
)
"""The settings that a card shows, without where the data are."""


def write_card(
    folder: Path, files: Sequence[str], net: TrainedNetwork, data: object, found: Evaluation, run_folder: Path
) -> Path:
    """Write README.md for files in a folder that `lenet.inference.export` made; returns its path.

    `found` is what the network does on the test images of `data`. The run's folder may have no run.json.
    """
    run = read_run(run_folder) if (run_folder / RUN_FILE).is_file() else None
    settings = {name: run["settings"].get(name) for name in RECIPE} if run else {}
    for place in ("root", "mirrors"):
        settings.get("data", {}).pop(place, None)
    mistakes, measures = found.confusion.clone().fill_diagonal_(0), found.measures
    actual, guess = divmod(int(mistakes.argmax()), len(found.classes))
    module = f"{type(net.classifier.net).__module__}.{type(net.classifier.net).__qualname__}"
    seen = [name for name, accuracy in measures["acc_by_class"].items() if accuracy == accuracy]  # the others are NaN
    template = Template(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8"), keep_trailing_newline=True, trim_blocks=True
    )
    card = template.render(
        net=net,
        data=data,
        run=run,
        command=[word for word in run["command"] if not word.startswith("hydra.run.dir=")] if run else [],
        measures=measures,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        settings=OmegaConf.to_yaml(OmegaConf.create(settings)),
        metrics=read_result(run_folder) if (run_folder / RESULT).is_file() else None,
        weakest=min(seen, key=lambda name: measures["acc_by_class"][name]),
        mistakes=int(mistakes.max()),
        actual=found.classes[actual],
        guess=found.classes[guess],
        files=files,
        own_module=None if module.startswith(("lenet.", "torch.")) else module,
        trained_on=(run["settings"]["data"]["_target_"] if run else "").rpartition(".")[2],
        shape=(1, *net.image_shape),
    )
    write_whole(folder / "README.md", card.encode())
    return folder / "README.md"
