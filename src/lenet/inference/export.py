"""A trained network as a file for other programs: ONNX, torch.export's program, safetensors.

Each takes images (N, C, H, W), float32 from 0 to 1, for any N, and gives logits (N, classes). A file counts only after
it was read again and compared with the network. Layers from scratch are written as PyTorch's own, which compute the
same.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lenet.errors import UserError
from lenet.inference.evaluate import batches
from lenet.inference.model import TrainedNetwork, as_floats, load, save_safetensors
from lenet.layers.modules import with_builtin_layers

Function = Callable[[Tensor], Tensor]  # from images to logits

IMAGES = 1000
"""How many test images the networks are compared on."""

ATOL, RTOL = 1e-5, 1e-6
"""How far a logit may be from the network's. Logits of 20 or more are rounded by 1e-5 in float32."""


def program_of(net: TrainedNetwork) -> torch.export.ExportedProgram:
    """What torch.export makes of the network, for any number of images."""
    example = torch.rand(2, *net.image_shape)  # a batch of one would be taken for a constant
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(with_builtin_layers(net.classifier.net), (example,), dynamic_shapes=shapes)


def write_onnx(net: TrainedNetwork, path: Path) -> None:
    """The metadata has the class names and the image shape, as JSON."""
    program = torch.onnx.export(
        program_of(net), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    metadata = {"classes": net.classes, "image_shape": net.image_shape}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def read_onnx(path: Path) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def write_exported(net: TrainedNetwork, path: Path) -> None:
    torch.export.save(program_of(net), path, extra_files={"classes.json": json.dumps(net.classes)})


FORMS: dict[str, tuple[str, Callable[[TrainedNetwork, Path], None], Callable[[Path], Function]]] = {
    "onnx": ("model.onnx", write_onnx, read_onnx),
    "exported": ("model.pt2", write_exported, lambda path: torch.export.load(path).module()),
    "safetensors": ("model.safetensors", save_safetensors, load),
}
"""The name of the file, what writes it, and what reads it."""


def export(net: TrainedNetwork, form: str, folder: Path, data: LightningDataModule) -> tuple[Path, int, float]:
    """Write the network, on the CPU, into a folder, and compare it on the first test images.

    Returns the file, how many images there were, and the `difference`.
    """
    name, write, read = FORMS[form]
    folder.mkdir(parents=True, exist_ok=True)
    write(net, folder / name)
    images = torch.cat([images for images, _ in batches(data)])[:IMAGES]
    try:
        return folder / name, len(images), difference(net, read(folder / name), images, str(folder / name))
    except UserError:
        (folder / name).unlink()
        raise


@torch.inference_mode()
def difference(net: TrainedNetwork, exported: Function, images: Tensor, name: str) -> float:
    """The largest difference between two networks' logits of images (N, C, H, W), bytes or floats in [0, 1].

    Raises a UserError with the name if it is more than rounding, or a class differs.
    """
    values = as_floats(images)
    expected, logits = net(values), exported(values)
    largest = float((logits - expected).abs().max())
    same = torch.allclose(logits, expected, rtol=RTOL, atol=ATOL)
    if not same or not torch.equal(logits.argmax(dim=1), expected.argmax(dim=1)):
        raise UserError(f"{name}: would compute other logits than the network, by up to {largest:.1e}; it is not kept")
    return largest
