"""A page about one picture: what a trained network predicts, from which pixels, by which stages, and its neighbours."""

from collections.abc import Iterable
from typing import Any

import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

from lenet.inference.model import TrainedNetwork, as_floats
from lenet.monitor.drawing import Tile, images, sheet
from lenet.monitor.pictures import filters, numbered
from lenet.reports.page import Page

NEIGHBOURS = 12


def add_explanation(page: Page, net: TrainedNetwork, image: Tensor, train: Iterable[Any]) -> None:
    """Add all about an image (C, H, W), bytes or floats in [0, 1]; `train` yields batches (images, labels)."""
    value = as_floats(image[None])
    _, (probabilities,) = net.predict(value)
    best = probabilities.topk(min(3, len(net.classes))).indices.tolist()
    page.section("Prediction")
    page.picture(images({"": image[0]}, width=240), "The picture as the network sees it; dark is large.")
    page.text("The network's prediction, with the probabilities of the best three classes:")
    page.table(["class", "probability"], [[net.classes[label], f"{probabilities[label]:.1%}"] for label in best])
    _add_pixels(page, net, value, best[0])
    _add_stages(page, net.classifier.net, value)
    page.section("Neighbours")
    page.text("The training images that are most like it to the network:")
    tiles = [
        Tile(f"{net.classes[label]}\n{far:.2f}", plane.numpy()) for far, plane, label in nearest(net, value, train)
    ]
    page.picture(sheet(tiles), "The class of each, and its distance from the picture in the last hidden layer.")


@torch.no_grad()
def _add_stages(page: Page, net: nn.Module, image: Tensor) -> None:
    """Add the filters, and what each layer makes of an image (1, C, H, W), float in [0, 1]."""
    page.section("Stages")
    page.text("What each stage makes of the picture: dark is large; red is positive, blue negative.")
    if len(kernels := filters(net)):
        page.picture(numbered(kernels), "The filters of the first convolution.")
    outputs: dict[str, Tensor] = {}
    leaves = {name: layer for name, layer in net.named_modules() if not any(layer.children())}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output[0].clone()}))
        for name, layer in leaves.items()
    ]
    net(image)
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        maps = {f"{number}": plane for number, plane in enumerate(output, start=1)} if output.dim() == 3 else {}
        maps = maps or {"": strip(output.flatten())}
        signed, size = bool((output < 0).any()), "×".join(map(str, output.shape))
        caption = f"{name}, {type(leaves[name]).__name__}: {size}"
        page.picture(images(maps, per_row=8 if output.dim() == 3 else 1, signed=signed), caption)


def _add_pixels(page: Page, net: TrainedNetwork, image: Tensor, label: int) -> None:
    """Add which pixels of an image (1, C, H, W), float in [0, 1], speak for a class."""
    page.section("Pixels")
    page.text(f"Which pixels speak for {net.classes[label]}:")
    slopes = Saliency(net).attribute(image.clone().requires_grad_(), target=label)
    shares = IntegratedGradients(net).attribute(image, target=label, n_steps=200).float()
    gained = float((net(image) - net(torch.zeros_like(image)))[0, label])
    page.picture(
        images({"picture": image[0, 0], "saliency": slopes[0, 0], "contributions": shares[0, 0]}, width=620, per_row=3),
        "Saliency: how much the class's logit changes with a pixel. Contributions: red for the class, blue against it.",
    )
    page.text(
        "Saliency is the gradient's absolute value (Simonyan et al., 2013). Contributions are integrated gradients"
        " (Sundararajan et al., 2017), from an empty picture to this one: they add up to"
        f" {float(shares.sum()):.2f}, and the logit differs by {gained:.2f} from that of the empty picture."
    )


def strip(values: Tensor, width: int = 400) -> Tensor:
    """Values (N,) as a plane: one row, thicker if it is short; several rows if it is long, filled up with zeros."""
    rows = F.pad(values, (0, -len(values) % width)).view(-1, width) if len(values) > width else values[None]
    return rows.repeat_interleave(max(1, len(values) // 20) if len(rows) == 1 else 8, dim=0)


@torch.no_grad()
def nearest(net: TrainedNetwork, image: Tensor, train: Iterable[Any]) -> list[tuple[float, Tensor, int]]:
    """The training images nearest to an image (1, C, H, W) in the last hidden layer: distance, plane (H, W), label."""
    own, distances, planes, labels = _hidden(net, image), [], [], []
    for batch, truth in train:
        distances.append(torch.linalg.vector_norm(_hidden(net, batch) - own, dim=1))
        planes.append(batch[:, 0])
        labels.append(truth)
    distance, plane, label = torch.cat(distances), torch.cat(planes), torch.cat(labels)
    chosen = distance.topk(min(NEIGHBOURS, len(distance)), largest=False).indices
    return list(zip(distance[chosen].tolist(), plane[chosen], label[chosen].tolist(), strict=True))


def _hidden(net: TrainedNetwork, batch: Tensor) -> Tensor:
    """The input of the last linear layer for images (N, C, H, W): (N, K); the logits if there is no such layer."""
    found: list[Tensor] = []
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for layer in layers]
    logits = net(batch)
    for hook in hooks:
        hook.remove()
    return found[-1].flatten(1) if found else logits
