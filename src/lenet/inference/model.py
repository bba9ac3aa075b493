"""`lenet.load(PATH)`: the network of a run or a checkpoint, ready for use.

net = lenet.load("outputs/DATE/TIME")
labels, probabilities = net.predict(images)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lenet.data.module import EVALUATION_BATCH_SIZE
from lenet.errors import UserError, flat
from lenet.files import write_whole
from lenet.training import checkpoint
from lenet.training.module import STATE, Classifier


class TrainedNetwork(nn.Module):
    """A trained network in eval mode: `classifier` with its `classes`, which are the names of its outputs."""

    def __init__(self, classifier: Classifier, classes: Sequence[str], image_shape: Sequence[int]) -> None:
        super().__init__()
        self.classifier, self.classes, self.image_shape = classifier, tuple(classes), tuple(image_shape)
        self.requires_grad_(False).eval()

    def forward(self, images: Any) -> Tensor:
        """Logits (N, classes) of images (H, W), (N, H, W) or (N, C, H, W), as a tensor, an array or lists.

        Values are whole numbers from 0 to 255, or floats from 0 to 1. Raises a UserError if images or values differ.
        """
        logits: Tensor = self.classifier(self._batch(images).to(self.classifier.device))
        return logits

    @torch.inference_mode()
    def predict(self, images: Any) -> tuple[Tensor, Tensor]:
        """The classes (N,) of images, and the probabilities (N, classes) of all classes; images as in `forward`."""
        logits = torch.cat([self(batch) for batch in torch.split(self._batch(images), EVALUATION_BATCH_SIZE)])
        probabilities = logits.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities

    def _batch(self, given: Any) -> Tensor:
        """The images, checked, as (N, C, H, W), bytes or floats."""
        try:
            images: Tensor = torch.as_tensor(np.asarray(given) if not isinstance(given, Tensor) else given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"images: should be a tensor, an array or lists of numbers ({flat(error)})") from None
        highest = 1 if images.is_floating_point() else 255
        if not bool(((images >= 0) & (images <= highest)).all()):
            raise UserError("images: should be whole numbers from 0 to 255, or floats from 0 to 1")
        channels, height, width = self.image_shape
        batch = images[None] if images.dim() == 2 else images
        batch = batch[:, None] if batch.dim() == 3 and channels == 1 else batch
        if batch.shape[1:] != self.image_shape:
            forms = f"(N, {channels}, {height}, {width})"
            forms = f"({height}, {width}), (N, {height}, {width}) or {forms}" if channels == 1 else forms
            raise UserError(f"images: have the shape {tuple(images.shape)}; the network takes {forms}")
        return batch if batch.is_floating_point() else batch.byte()


def as_floats(images: Tensor) -> Tensor:
    """Images of bytes 0–255 as floats in [0, 1]; floats as they are."""
    return images / 255 if images.dtype == torch.uint8 else images.float()


def load(path: str | Path, device: str | torch.device = "cpu") -> TrainedNetwork:
    """The network of a run's folder, as it was after the last epoch, of a checkpoint or of a .safetensors file.

    The file may come from any machine, and nothing in it is executed. Raises a UserError if there is none, it is
    damaged, or it does not say which network it is of.
    """
    file = checkpoint.file_of(Path(path).expanduser())
    is_checkpoint = file.suffix != ".safetensors"
    content = checkpoint.read(file) if is_checkpoint else _read_safetensors(file)
    classifier = checkpoint.classifier_of(content, path)
    state = content.get(STATE, {})
    names = state.get("class_names") or [str(number) for number in range(len(list(classifier.parameters())[-1]))]
    return TrainedNetwork(classifier.to(device), names, state.get("image_shape") or (1, 28, 28))


def save_safetensors(net: TrainedNetwork, path: Path) -> None:
    """Write what `load` needs; the weights are named as in a checkpoint, the metadata has the rest as JSON.

    Raises a UserError if the network has no description as plain values.
    """
    parts = {name: net.classifier.hparams.get(name) for name in ("net", "loss")}
    if not parts["net"]:
        raise UserError(f"{path}: needs a network that a configuration describes, such as model._target_=CLASS")
    content = {
        "hyper_parameters": parts,
        STATE: {"class_names": net.classes, "image_shape": net.image_shape},
    }
    metadata = {name: json.dumps(value) for name, value in content.items()}
    weights = {name: value.contiguous() for name, value in net.classifier.state_dict().items()}
    write_whole(path, save(weights, metadata))


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The content of a safetensors file, with the keys of a checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            return {**metadata, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is no network of this program, or a damaged one ({flat(error)})") from None
