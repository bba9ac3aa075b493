"""The data modules: images held in memory as bytes and batched by indexing tensors.

A DataLoader that fetches picture by picture spends several times longer on a batch than LeNet does. Here a
sampler yields the indices of a whole block of batches, and the data set answers with one slice. A block is what
Lightning takes for a batch: so what Lightning does for each of its batches is done once for many optimizer steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lenet.data import fashion_mnist, synthetic
from lenet.data.fashion_mnist import Images

EVALUATION_BATCH_SIZE = 1000
"""Images in a batch of validation or test. Without gradients a batch can be large; beyond this it outgrows caches."""


class Share(NamedTuple):
    """One device's part of a batch: indices into the data set, and the number of images over all devices."""

    indices: Tensor
    total: int


class Batch(NamedTuple):
    """One device's part of what one optimizer step is computed from.

    Attributes:
        images: (N, 1, 28, 28) uint8.
        labels: (N,) int64.
        total: the number of images in the batch over all devices.
        stage: what they are for: "train", "val" or "test".
    """

    images: Tensor
    labels: Tensor
    total: int
    stage: str


class Block(NamedTuple):
    """One device's part of several batches that follow each other.

    Attributes:
        images: (M, 1, 28, 28) uint8, those of all batches.
        labels: (M,) int64.
        indices: (M,) int64, where the images stand in their data set; never moved to a device.
        sizes: for each batch the number of images here, and over all devices.
        stage: what they are for: "train", "val" or "test".
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    sizes: tuple[tuple[int, int], ...]
    stage: str

    def batches(self) -> Iterator[Batch]:
        """The batches in their order, on the device where the block is."""
        own = [size for size, _ in self.sizes]
        parts = zip(torch.split(self.images, own), torch.split(self.labels, own), self.sizes, strict=True)
        for images, labels, (_, total) in parts:
            yield Batch(images, labels, total, self.stage)


class ImageSet(Dataset[Block]):
    """Images (N, 28, 28) uint8 and labels (N,), fetched a block at a time."""

    def __init__(self, data: Images, stage: str) -> None:
        self.images = data.images.unsqueeze(1)
        self.labels = data.labels
        self.stage = stage

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, shares: Sequence[Share]) -> Block:
        indices = torch.cat([share.indices for share in shares])
        # index_select copies whole images; indexing with [] goes byte by byte, and takes eight times as long.
        images, labels = (data.index_select(0, indices) for data in (self.images, self.labels))
        sizes = tuple((len(share.indices), share.total) for share in shares)
        return Block(images, labels, indices, sizes, self.stage)


class BatchSampler(Sampler[Share]):
    """Yields each index once an epoch, in batches. What does not fill a batch comes first.

    Usually the smallest batch is an epoch's last. Its gradient is the noisiest, and at the published learning rate
    of 0.9 a step on 96 images, taken just before the model is evaluated, costs accuracy: on the test images of
    experiment=d2l 0.807 ± 0.018 with it last (seeds 0-7), 0.823 ± 0.003 with it first (seeds 0-5).

    With several devices, each yields its share of every batch, so that the batches, and with them the course of
    training, do not depend on the number of devices.

    Args:
        size: the number of images.
        batch_size: images in a batch, over all devices.
        seed: the order of an epoch is a function of (seed, epoch) alone; None keeps the images in order.
        rank: which device this is.
        world_size: how many there are.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        for batch in torch.split(self._order(), self.sizes):
            yield Share(batch[self.rank :: self.world_size], len(batch))

    @property
    def sizes(self) -> list[int]:
        """The number of images in each batch, over all devices."""
        left_over = self.size % self.batch_size
        return [left_over] * (left_over > 0) + [self.batch_size] * (self.size // self.batch_size)

    @property
    def own_sizes(self) -> set[int]:
        """The numbers of images that this device's batches have."""
        return {len(range(self.rank, size, self.world_size)) for size in self.sizes}

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(self.size)
        # NumPy mixes both numbers into the state; a torch.Generator takes one seed and uses 32 bits of it.
        return torch.from_numpy(np.random.default_rng((self.seed, self.epoch)).permutation(self.size))


class BlockSampler(Sampler[list[Share]]):
    """The batches of a BatchSampler, `steps` at a time; the last block of an epoch may have fewer.

    Args:
        batches: all of an epoch.
        steps: how many make a block.
        start: an epoch, and how many of its batches have been had; its first block ends where it would have ended.
    """

    def __init__(self, batches: BatchSampler, steps: int, start: tuple[int, int] = (0, 0)) -> None:
        self.batches = batches
        self.steps = steps
        self.start = start

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batches) // self.steps)

    def __iter__(self) -> Iterator[list[Share]]:
        epoch, had = self.start
        had = had if self.batches.epoch == epoch else 0
        batches = islice(self.batches, had, None)
        size = self.steps - had % self.steps
        while block := list(islice(batches, size)):
            yield block
            size = self.steps


class ImageDataModule(LightningDataModule, ABC):
    """Training, validation and test batches of 28×28 images in ten classes.

    Args:
        batch_size: images in one optimizer step, over all devices.
        val_size: the last so many training images are held out for validation; 0 holds out none.
        seed: of the order of the training images.
        test_every_epoch: make the test images a second validation set.
        block_steps: how many training batches Lightning gets at a time.

    Attributes:
        classes: what the labels 0 to 9 stand for.
        start: the epoch in which training goes on, and how many of its steps are done; to be set before it does.
    """

    classes: tuple[str, ...]

    def __init__(
        self, batch_size: int, val_size: int, seed: int = 0, test_every_epoch: bool = False, block_steps: int = 1
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.val_size = val_size
        self.seed = seed
        self.test_every_epoch = test_every_epoch
        self.block_steps = block_steps
        self.start = (0, 0)
        self._sets: dict[str, ImageSet] = {}

    @abstractmethod
    def load(self) -> tuple[Images, Images]:
        """The training images, validation images included, and the test images."""

    def setup(self, stage: str | None = None) -> None:
        """Load the images, the first time it is called; Lightning calls it once for each stage."""
        if self._sets:
            return
        train, test = self.load()
        split = len(train.labels) - self.val_size
        self._sets = {
            "train": ImageSet(Images(train.images[:split], train.labels[:split]), "train"),
            "val": ImageSet(Images(train.images[split:], train.labels[split:]), "val"),
            "test": ImageSet(test, "test"),
        }

    def train_dataloader(self) -> DataLoader[Block]:
        return self._loader("train", self.batch_size, self.seed)

    def val_dataloader(self) -> list[DataLoader[Block]]:
        """What is evaluated after each epoch: the validation images if any are held out, the test images if asked."""
        stages = ["val"] * (self.val_size > 0) + ["test"] * self.test_every_epoch
        return [self._loader(stage, EVALUATION_BATCH_SIZE) for stage in stages]

    def test_dataloader(self) -> DataLoader[Block]:
        return self._loader("test", EVALUATION_BATCH_SIZE)

    def transfer_batch_to_device(self, batch: Block, device: torch.device, dataloader_idx: int) -> Block:
        """Lightning's own looks for tensors in every number of a block."""
        return batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))

    def images(self, stage: str) -> ImageSet:
        """Those of "train", "val" or "test"; to be called after `setup`."""
        return self._sets[stage]

    def steps_in(self, blocks: int) -> int:
        """Optimizer steps in so many blocks from an epoch's beginning."""
        return min(blocks * self.block_steps, -(-len(self._sets["train"]) // self.batch_size))

    def _loader(self, stage: str, batch_size: int, seed: int | None = None) -> DataLoader[Block]:
        data = self._sets[stage]
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = BatchSampler(len(data), batch_size, seed, rank, world_size)
        sampler = BlockSampler(batches, self.block_steps, self.start) if stage == "train" else BlockSampler(batches, 1)
        # batch_size=None: what the sampler yields is an index of a whole block already.
        return DataLoader(data, sampler=sampler, batch_size=None)


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST: 60,000 training and 10,000 test images.

    Args:
        root: the folder of the four files, in torchvision's layout; they are obtained if they are missing.
        mirrors: addresses to download from, instead of torchvision's.
        **batching: see ImageDataModule.

    Raises:
        UserError: in `prepare_data` and `setup`, if a file is damaged or cannot be obtained.
    """

    classes = fashion_mnist.CLASSES

    def __init__(self, root: str, mirrors: Sequence[str] | None = None, **batching: Any) -> None:
        super().__init__(**batching)
        self.root = Path(root).expanduser().absolute()
        self.mirrors = mirrors

    def prepare_data(self) -> None:
        """Obtain and verify the files; called in one process a machine."""
        fashion_mnist.obtain(self.root, self.mirrors)

    def load(self) -> tuple[Images, Images]:
        return fashion_mnist.load(self.root)


class SyntheticDataModule(ImageDataModule):
    """Ten shapes drawn by the program, the same ones in every run.

    Args:
        train_size: how many training images, validation images included.
        test_size: how many test images.
        **batching: see ImageDataModule.
    """

    classes = synthetic.CLASSES

    def __init__(self, train_size: int, test_size: int, **batching: Any) -> None:
        super().__init__(**batching)
        self.train_size = train_size
        self.test_size = test_size

    def load(self) -> tuple[Images, Images]:
        return synthetic.draw(self.train_size, seed=0), synthetic.draw(self.test_size, seed=1)
