"""Random changes to whole batches of training images, on the device where the images are.

An augmentation is any callable `images, labels = augment(images, labels)`: from images (N, C, H, W) uint8 and labels
(N,) int64 to images of the same shape and type, and labels or, after mixup, probabilities (N, classes) float32. If it
has a method `begin_epoch`, that is called before each epoch with the share of the run that is over; if it has
`is_recordable`, a CUDA graph may repeat what it did once on the device.
Transforms of torchvision.transforms.v2 that take bytes are such callables, too, but draw once for a whole batch.

Random numbers come from torch's default generator of the device, so that a batch is a function of its seed. Nothing
waits for the device, and all shapes are fixed, so that a CUDA graph can record it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.errors import UserError

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Augment:
    """Shifts, mirrors, erases and mixes, in this order, each image on its own; by default it does nothing.

    Args:
        shift: moves an image by up to so many pixels in both directions; zeros come in from outside.
        flip: probability of mirroring left and right.
        erase: side of a square that is set to zero. Its centre is any pixel, so that it may reach outside (cutout:
            DeVries and Taylor, 2017).
        erase_probability: of an image.
        mixup: mixes an image with its neighbour in the batch, and their labels alike, in a proportion drawn from
            Beta(mixup, mixup), in steps of 1/255 for the pixels (Zhang et al., 2018). 0 leaves labels as they are.
        cutmix: probability that, instead of mixing all pixels, a box of the neighbour is pasted in, of up to the whole
            image, and the labels are mixed as the areas are (Yun et al., 2019). It needs mixup.
        mixup_until: the share of the run after which images are mixed no longer: at the end, with low learning rates, a
            network gains from images as they are.
        classes: how many there are, for the labels that mixup makes.
    """

    is_recordable = True  # all that it draws is drawn on the device

    def __init__(
        self,
        shift: int = 0,
        flip: float = 0.0,
        erase: int = 0,
        erase_probability: float = 0.5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_until: float = 1.0,
        classes: int = 10,
    ) -> None:
        shares = {"flip": flip, "erase_probability": erase_probability, "cutmix": cutmix, "mixup_until": mixup_until}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: should be from 0 to 1")
        if min(shift, erase, mixup) < 0:
            raise ValueError(f"shift={shift}, erase={erase}, mixup={mixup}: should be at least 0")
        self.shift, self.flip = shift, flip
        self.erase, self.erase_probability = erase, erase_probability
        self.mixup, self.cutmix, self.mixup_until, self.classes = mixup, cutmix, mixup_until, classes
        self.is_mixing = mixup > 0

    def begin_epoch(self, share: float) -> None:
        """Called before each epoch, with the share of the run that is over."""
        self.is_mixing = self.mixup > 0 and share < self.mixup_until

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if images.dtype != torch.uint8:
            raise UserError(f"augment: takes images as bytes 0–255, and these are {images.dtype}")
        if self.shift or self.flip:
            images = shifted_or_mirrored(images, self.shift, self.flip)
        if self.erase:
            images = erased(images, self.erase, self.erase_probability)
        return mixed(images, labels, self.classes, self.mixup, self.cutmix) if self.is_mixing else (images, labels)


def shifted_or_mirrored(images: Tensor, shift: int, flip: float) -> Tensor:
    """Each image moved by up to `shift` pixels in both directions, and mirrored with probability `flip`."""
    count, device = len(images), images.device
    padded = F.pad(images, [shift] * 4)
    number = torch.arange(count, device=device)
    if flip:
        padded = torch.cat([padded, padded.flip(3)])
        number = number + count * (torch.rand(count, device=device) < flip)
    down, right = torch.randint(2 * shift + 1, (2, count), device=device)
    return _windows(padded, number, down, right, images.shape)


def erased(images: Tensor, size: int, probability: float) -> Tensor:
    """Each image, with this probability, with a square of zeros of `size` pixels around any pixel."""
    count, _, height, width = images.shape
    device, middle = images.device, size // 2
    mask = torch.full((1, 1, 2 * height + size, 2 * width + size), 255, dtype=torch.uint8, device=device)
    mask[:, :, height : height + size, width : width + size] = 0
    down = torch.randint(1 + middle, 1 + middle + height, (count,), device=device)
    right = torch.randint(1 + middle, 1 + middle + width, (count,), device=device)
    # Below the square there is no zero.
    down = torch.where(torch.rand(count, device=device) < probability, down, height + size)
    return images & _windows(mask, torch.zeros_like(down), down, right, (count, 1, height, width))


def mixed(images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    """Each image mixed with the one before it, as bytes; and probabilities (N, classes) float32."""
    alphas = torch.full((len(images), 1), mixup, device=images.device)
    share = torch.distributions.Beta(alphas, alphas, validate_args=False).sample()  # validation waits for the device
    neighbours = images.roll(1, 0)
    if cutmix:
        pasted = torch.rand_like(share) < cutmix
        share = share.masked_fill(pasted, 1)
        rows, columns = _span(images.shape[2], side := torch.rand_like(share).sqrt()), _span(images.shape[3], side)
    values = torch.lerp(neighbours.flatten(1).float(), images.flatten(1).float(), share).round_()
    # On the CPU, floats become bytes several times as fast by way of another type.
    results = values.short().byte().view_as(images)
    if cutmix:
        rows = rows & pasted
        # torch.where does the same, but on the CPU it takes four times as long.
        box = (rows.byte() * 255)[:, None, :, None] & (columns.byte() * 255)[:, None, None]
        results = results ^ ((results ^ neighbours) & box)
        area = rows.float().mean(1, keepdim=True) * columns.float().mean(1, keepdim=True)
        share = share - area
    targets = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return results, torch.lerp(targets.roll(1, 0), targets, share)


def _span(length: int, share: Tensor) -> Tensor:
    """Which of so many pixels are in a random span of these shares (N, 1) of them, cut off at the edge: (N, length)."""
    half = (share * length / 2).floor()
    middle = torch.randint(length, share.shape, device=share.device)
    pixels = torch.arange(length, device=share.device)
    return (pixels >= middle - half) & (pixels < middle + half)


def _windows(images: Tensor, number: Tensor, down: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
    """For each (N,) of the output, the window at (down, right) of image `number`: (N, C, H, W).

    A window is a view that starts at another byte, so that they are rows of one view of all, and one copy takes them.
    """
    per_image, per_channel, per_row, _ = images.stride()
    height, width = images.shape[2:]
    last = (len(images) - 1) * per_image + (height - shape[2]) * per_row + width - shape[3]
    views = images.as_strided((last + 1, *shape[1:]), (1, per_channel, per_row, 1))
    return views.index_select(0, number * per_image + down * per_row + right)
