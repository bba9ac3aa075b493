"""Why a convolution: the tour's first stop, C0, and at its end what shifted images do to trained networks."""

import io
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lenet.data import Images
from lenet.data.synthetic import draw
from lenet.layers.functional import conv2d
from lenet.monitor.drawing import images
from lenet.reports.page import Page

SHIFTS = range(-4, 5)
"""In pixels, to the right."""


def add_why(page: Page) -> None:
    """Add stop C0: a fully connected layer becomes a convolution when it has to treat all places alike."""
    page.section("C0", "From a fully connected layer to a convolution")
    page.text(
        "A fully connected layer from 28×28 pixels to a map of 28×28 has a weight V[i, j, a, b] for each output (i, j)"
        " and each pixel, which lies (a, b) pixels away: 28⁴ = 614,656 numbers. For a photo of a million pixels and"
        " 1,000 hidden units it would have 10⁹."
    )
    page.text(
        "A boot may stand anywhere, so all places should be treated alike (translation invariance):"
        " V[i, j, a, b] = V[a, b]. One number for each distance is left, 55·55 = 3,025."
    )
    page.text(
        "To know what is at a place, one has to look at what is near it (locality): V[a, b] = 0 further than two pixels"
        " away. 5·5 = 25 numbers are left. This is a convolution."
    )
    image, kernel = draw(1, seed=0).images[0] / 255, torch.randn(5, 5)
    by_distance = torch.zeros(55, 55)  # from -27 to 27
    by_distance[25:30, 25:30] = kernel
    distances = torch.arange(28)[None] - torch.arange(28)[:, None] + 27  # (output, pixel)
    dense = by_distance[distances[:, None, :, None], distances[None, :, None, :]]  # (i, j, row, column)
    maps = {
        "V[i, j, a, b]": torch.einsum("ijkl,kl->ij", dense, image),
        "V[a, b]": conv2d(image[None], by_distance[None, None], padding=27)[0],
        "V[a, b], near alone": conv2d(image[None], kernel[None, None], padding=2)[0],
    }
    numbers = (dense.numel(), by_distance.numel(), kernel.numel())
    rows = []
    for (name, output), count in zip(maps.items(), numbers, strict=True):
        rows.append([name, f"{count:,}", f"{(output - maps['V[i, j, a, b]']).abs().max():.1e}"])
    page.text("With the same 25 numbers in their places, all three compute the same map:")
    page.table(["weight", "numbers", "largest difference from the first"], rows)
    page.picture(images({"image": image, **maps}, width=620), "An image, and the map that each of the three computes.")


def shifted(pixels: Tensor, shift: int) -> Tensor:
    """Images (..., H, W) with their content moved to the right, zeros behind it."""
    moved = torch.roll(pixels, shift, dims=-1)
    if shift:
        moved[..., slice(0, shift) if shift > 0 else slice(shift, None)] = 0
    return moved


@torch.no_grad()
def add_shifts(page: Page, convolution: nn.Module, nets: Mapping[str, nn.Module], test: Images) -> None:
    """Add what becomes of shifted images in a trained convolution, and in whole networks."""
    page.section("Shifts", "What moves in the image moves in the maps")
    image = test.images[:1, None] / 255
    before, after = convolution(image), convolution(shifted(image, 3))
    page.text(
        "The test image, and the same 3 pixels further to the right: the maps of the first convolution move along."
    )
    planes = {
        "image": image[0, 0],
        "map 1": before[0, 0],
        "shifted image": shifted(image, 3)[0, 0],
        "its map 1": after[0, 0],
    }
    page.picture(images(planes, width=620, per_row=4), "What is computed is the same at each place.")
    inside = (after - shifted(before, 3))[..., 7:-4].abs().max()
    page.code(f"largest difference of the moved map, away from the edges: {inside:.1e}")

    page.text(
        "Whole networks are not that indifferent: their linear layers know places. Here is the accuracy on shifted test"
        " images; no training image was shifted."
    )
    rows, figure = [], Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, net in nets.items():
        size = sum(parameter.numel() for parameter in net.parameters())
        accuracies = []
        for shift in SHIFTS:
            batches = torch.split(shifted(test.images[:, None], shift), 1000)
            logits = torch.cat([net(batch / 255) for batch in batches])
            accuracies.append((logits.argmax(dim=1) == test.labels).double().mean().item())
        rows.append([name, f"{size:,}", *(f"{accuracy:.3f}" for accuracy in accuracies)])
        axes.plot(list(SHIFTS), accuracies, "o-", label=name)
    page.table(["network", "parameters", *(f"{shift:+d}" if shift else "0" for shift in SHIFTS)], rows)
    axes.set(xlabel="shift to the right, in pixels", ylabel="accuracy")
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    page.picture(drawn.getvalue(), "Accuracy on test images that were shifted to the right.")
