"""What all data sets share: a data module that batches images by indexing tensors.

A DataLoader that fetches picture by picture spends several times longer on a batch than LeNet does. Here a batch is
one copy out of a tensor that holds all images. Many batches can also be joined to a block, which Lightning takes for
one batch: then Lightning's own work is done once for many optimizer steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lenet.errors import UserError

EVALUATION_BATCH_SIZE = 1000
"""Images in a batch of validation or test. Without gradients a batch can be large; beyond this it outgrows caches."""


class Images(NamedTuple):
    """Images (N, 28, 28) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """One device's share of an optimizer step: images (N, 1, 28, 28) uint8, labels (N,); total: of all devices."""

    images: Tensor
    labels: Tensor
    total: int


class Block(NamedTuple):
    """One device's share of several optimizer steps: images (M, 1, 28, 28) uint8 and labels (M,) of all of them.

    sizes: for each step the number of images on this device, and over all devices.
    """

    images: Tensor
    labels: Tensor
    sizes: tuple[tuple[int, int], ...]

    def batches(self) -> Iterator[Batch]:
        """The steps in their order, on the device where the block is."""
        own = [size for size, _ in self.sizes]
        parts = zip(torch.split(self.images, own), torch.split(self.labels, own), self.sizes, strict=True)
        for images, labels, (_, total) in parts:
            yield Batch(images, labels, total)


class Loader:
    """Yields each image once an epoch, in batches for one device. The batch that is not full comes first.

    At the end, as usual, its noisy gradient lowers accuracy at the published learning rate of 0.9: experiment=d2l has
    0.807 ± 0.018 on the test images with it last (seeds 0-7), and 0.823 ± 0.003 with it first (seeds 0-5).

    Each device gets its share of every batch, so the batches do not depend on the number of devices. This is no torch
    DataLoader: with several devices Lightning replaces the sampler of a DataLoader, also a custom one with
    batch_size=None, and would share the shares once more. Other iterables it takes as they are.

    Args:
        batch_size: images in a batch, over all devices.
        seed: the order of an epoch is a function of (seed, epoch) alone; None keeps the images in order.
        rank, world_size: which device this is, and how many there are.
        block_steps: 1 yields (images (N, 1, 28, 28), labels (N,)); more yields Blocks of so many batches.

    `sizes` is that of Block, for all steps of an epoch.
    """

    def __init__(
        self, data: Images, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1, block_steps: int = 1
    ) -> None:
        self.images, self.labels = data.images.unsqueeze(1), data.labels
        self.seed, self.epoch = seed, 0
        self.rank, self.world_size, self.block_steps = rank, world_size, block_steps
        full, left_over = divmod(len(self.labels), batch_size)
        totals = [left_over] * (left_over > 0) + [batch_size] * full
        self.sizes = tuple((len(range(rank, total, world_size)), total) for total in totals)

    batch_sampler = None  # Lightning reads both from a loader, and calls sampler.set_epoch before each epoch

    @property
    def sampler(self) -> Self:
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.sizes) // self.block_steps)

    def __iter__(self) -> Iterator[Any]:
        order = torch.arange(len(self.labels))
        if self.seed is not None:
            # NumPy mixes both numbers into the state; a torch.Generator takes one seed and uses 32 bits of it.
            order = torch.from_numpy(np.random.default_rng((self.seed, self.epoch)).permutation(len(self.labels)))
        batches = torch.split(order, [total for _, total in self.sizes])
        for first in range(0, len(batches), self.block_steps):
            block = slice(first, first + self.block_steps)
            indices = torch.cat([batch[self.rank :: self.world_size] for batch in batches[block]])
            # index_select copies whole images; indexing with [] goes byte by byte, and takes eight times as long.
            images, labels = (data.index_select(0, indices) for data in (self.images, self.labels))
            yield (images, labels) if self.block_steps == 1 else Block(images, labels, self.sizes[block])


class ImageDataModule(LightningDataModule, ABC):
    """Training, validation and test batches of small images. A subclass has `load` and `class_names`.

    Works with any lightning.Trainer. With several devices, device r of n gets batch[r::n] of every batch, whatever
    the trainer's use_distributed_sampler. DDP averages gradients with equal weights: where n does not divide a batch,
    the loss should weigh a device's images; a batch with fewer images than devices leaves a device an empty share.

    Args:
        batch_size: images in one optimizer step, over all devices.
        val_size: the last so many training images are held out for validation; 0 holds out none.
        seed: of the order of the training images.
        test_every_epoch: make the test images a second validation set.
        block_steps: how many optimizer steps the training loader yields at a time: see Loader.
    """

    image_shape = (1, 28, 28)
    class_names: tuple[str, ...]

    def __init__(
        self,
        batch_size: int = 256,
        val_size: int = 5000,
        seed: int = 0,
        test_every_epoch: bool = False,
        block_steps: int = 1,
    ) -> None:
        super().__init__()
        self.batch_size, self.val_size, self.seed = batch_size, val_size, seed
        self.test_every_epoch, self.block_steps = test_every_epoch, block_steps
        self._images: dict[str, Images] = {}

    @abstractmethod
    def load(self) -> tuple[Images, Images]:
        """The training images, validation images included, and the test images."""

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def evaluation_stages(self) -> tuple[str, ...]:
        """What the loaders of `val_dataloader` hold, in their order: "val", "test", both or none."""
        return ("val",) * (self.val_size > 0) + ("test",) * self.test_every_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; after `setup`."""
        return -(-len(self.images("train").labels) // self.batch_size)

    def images(self, stage: str) -> Images:
        """The images of "train", "val" or "test", in the order of the file; after `setup`."""
        return self._images[stage]

    def setup(self, stage: str | None = None) -> None:
        """Load the images, the first time it is called; Lightning calls it once for each stage."""
        if self._images:
            return
        (images, labels), test = self.load()
        split = len(labels) - self.val_size
        if not 0 < split <= len(labels):
            raise UserError(f"data.val_size={self.val_size}: should be at least 0, and less than {len(labels):,}")
        train, val = Images(images[:split], labels[:split]), Images(images[split:], labels[split:])
        self._images = {"train": train, "val": val, "test": test}

    def train_dataloader(self) -> Loader:
        return self._loader("train", self.batch_size, self.seed, self.block_steps)

    def val_dataloader(self) -> list[Loader]:
        return [self._loader(stage, EVALUATION_BATCH_SIZE) for stage in self.evaluation_stages]

    def test_dataloader(self) -> Loader:
        return self._loader("test", EVALUATION_BATCH_SIZE)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, Block):  # Lightning's own looks for tensors in every number of a block
            return batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, stage: str, batch_size: int, seed: int | None = None, block_steps: int = 1) -> Loader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Loader(self.images(stage), batch_size, seed, rank, world_size, block_steps)
