"""Exported networks: read again by what is made for them, and compared with the network."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import lenet
from lenet import Classifier, Synthetic
from lenet.errors import UserError
from lenet.inference.export import FORMS, difference, export
from lenet.inference.model import TrainedNetwork
from tests.commands import Commands
from tests.conftest import Finished


@pytest.fixture(scope="module")
def data() -> Synthetic:
    data = Synthetic(train_size=100, test_size=1200, val_size=0)
    data.setup()
    return data


@pytest.fixture
def net(finished_run: Finished) -> TrainedNetwork:
    return lenet.load(finished_run.folder)


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_network_agrees_on_a_thousand_test_images(
    net: TrainedNetwork, data: Synthetic, tmp_path: Path, form: str
) -> None:
    path, images, largest = export(net, form, tmp_path / "export", data)
    assert path.exists()
    assert images == 1000
    assert largest <= 1e-5


def nudge_onnx(path: Path) -> None:
    model: Any = onnx.load(path)
    (weight,) = [each for each in model.graph.initializer if each.name == "conv1.weight"]
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1e-3
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def nudge_exported(path: Path) -> None:
    program = torch.export.load(path)
    with torch.no_grad():
        program.state_dict["conv1.weight"].view(-1)[0] += 1e-3
    torch.export.save(program, path)


def nudge_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    weights["net.conv1.weight"].view(-1)[0] += 1e-3
    save_file(weights, path, metadata)


@pytest.mark.parametrize(
    ("form", "nudge"), [("onnx", nudge_onnx), ("exported", nudge_exported), ("safetensors", nudge_safetensors)]
)
def test_a_weight_that_differs_by_a_thousandth_is_found(
    net: TrainedNetwork, data: Synthetic, tmp_path: Path, form: str, nudge: Any
) -> None:
    path, _, _ = export(net, form, tmp_path, data)
    nudge(path)
    with pytest.raises(UserError, match=path.name):
        difference(net, FORMS[form][2](path), data.images("test").images[:1000, None], path.name)


def test_safetensors_have_the_architecture_the_classes_and_the_loss(net: TrainedNetwork, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    FORMS["safetensors"][1](net, path)
    again = lenet.load(path)
    images = torch.rand(5, 28, 28)
    assert torch.equal(again.predict(images)[1], net.predict(images)[1])
    assert again.classes == net.classes
    assert repr(again.classifier) == repr(net.classifier)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{path}: .*damaged"):
        lenet.load(path)


def test_a_network_that_no_configuration_describes_has_no_safetensors(tmp_path: Path) -> None:
    net = TrainedNetwork(
        Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))), "abc", (1, 28, 28)
    )
    with pytest.raises(UserError, match="configuration"):
        FORMS["safetensors"][1](net, tmp_path / "model.safetensors")


@pytest.mark.long
def test_the_command_writes_the_files_and_a_card_whose_code_runs(
    commands: Commands, finished_run: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    done = commands.run("scripts/export.py", str(run), "--to", *FORMS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("logits within") == 3
    folder = run / "export"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "confusion.png", "evaluation.json"),
        *(name for name, _, _ in FORMS.values()),
    }
    card = (folder / "README.md").read_text()
    for part in (
        f"{finished_run.metrics['test/acc']:.4f}",
        "model=lenet_relu",
        "plus",
        "torch.optim.Adam",
        "Ten shapes",
    ):
        assert part in card
    code = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(code) == 3
    (tmp_path / "card.py").write_text("\n".join([*code, "assert logits.shape == (1, 10) == probabilities.shape"]))
    ran = commands.run(str(tmp_path / "card.py"), cwd=folder)
    assert ran.returncode == 0, ran.stderr
