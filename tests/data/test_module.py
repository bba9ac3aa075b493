"""The order of images, their batches and blocks, and what Lightning gets."""

from itertools import islice
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lenet.data import Block, Images, Synthetic
from lenet.data.module import Loader
from lenet.errors import UserError


def numbered(size: int) -> Images:
    """Images that are told apart by their labels, and by their first pixels."""
    labels = torch.arange(size)
    return Images(labels.byte().view(-1, 1, 1).expand(-1, 28, 28), labels)


def loader(size: int, batch_size: int = 32, seed: int | None = 0, epoch: int = 0, **options: int) -> Loader:
    loader = Loader(numbered(size), batch_size, seed, **options)
    loader.set_epoch(epoch)
    return loader


def labels(loader: Loader) -> list[list[int]]:
    """The labels of each optimizer step."""
    return [labels.tolist() for _, labels in loader]


def synthetic(val_size: int = 20, test_every_epoch: bool = False, seed: int = 0, block_steps: int = 1) -> Synthetic:
    data = Synthetic(100, 30, batch_size=32, val_size=val_size, seed=seed, test_every_epoch=test_every_epoch)
    data.block_steps = block_steps
    data.setup()
    return data


def test_each_image_comes_once_an_epoch_with_its_label() -> None:
    for epoch in range(3):
        images, labels = zip(*loader(200, epoch=epoch), strict=True)
        assert sorted(torch.cat(labels).tolist()) == list(range(200))
        assert torch.equal(torch.cat(images)[:, 0, 0, 0], torch.cat(labels).byte())


@pytest.mark.parametrize(
    ("size", "sizes"), [(1000, [232, 256, 256, 256]), (512, [256, 256]), (100, [100]), (257, [1, 256])], ids=str
)
def test_the_batch_that_is_not_full_comes_first(size: int, sizes: list[int]) -> None:
    batches = loader(size, 256)
    assert [len(batch) for batch in labels(batches)] == sizes == [total for _, total in batches.sizes]
    assert len(batches) == len(sizes)


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    pairs = [(seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in range(3)]
    orders = [str(labels(loader(100, seed=seed, epoch=epoch))) for seed, epoch in pairs]
    assert len(set(orders)) == len(pairs)
    torch.manual_seed(5)
    assert orders == [str(labels(loader(100, seed=seed, epoch=epoch))) for seed, epoch in pairs]


def test_the_order_is_the_one_of_published_results() -> None:
    assert labels(loader(7, batch_size=3, seed=3, epoch=2)) == [[4], [0, 2, 1], [6, 3, 5]]


def test_without_a_seed_the_order_is_the_files() -> None:
    assert labels(loader(10, 4, seed=None)) == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]


@pytest.mark.parametrize("steps", [2, 3, 100])
def test_blocks_hold_the_batches_in_their_order(steps: int) -> None:
    one_by_one = loader(100, seed=3, epoch=2, world_size=2)
    blocks = loader(100, seed=3, epoch=2, world_size=2, block_steps=steps)
    assert [len(block.sizes) for block in blocks][:-1] == [steps] * (len(blocks) - 1)
    batches = [batch for block in blocks for batch in block.batches()]
    for batch, (images, labels), (_, total) in zip(batches, one_by_one, one_by_one.sizes, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
        assert batch.total == total


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("size", [97, 100])
def test_devices_share_the_batches_of_one_device(world_size: int, size: int) -> None:
    alone = labels(loader(size, seed=5))
    devices = [loader(size, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for rank, device in enumerate(devices):
        assert labels(device) == [batch[rank::world_size] for batch in alone]
        assert [own for own, _ in device.sizes] == [len(batch) for batch in labels(device)]


def test_the_validation_images_are_the_last_of_the_training_file() -> None:
    data = synthetic(val_size=20)
    everything, test = data.load()
    assert torch.equal(data.images("train").images, everything.images[:80])
    assert torch.equal(data.images("val").labels, everything.labels[80:])
    assert torch.equal(data.images("test").images, test.images)
    assert (data.steps_per_epoch, data.classes) == (3, 10)
    (validation,) = data.val_dataloader()
    ((images, _),) = validation
    assert torch.equal(images.squeeze(1), everything.images[80:])


@pytest.mark.parametrize(
    ("val_size", "test_every_epoch", "stages"),
    [(20, False, ["val"]), (0, False, []), (0, True, ["test"]), (20, True, ["val", "test"])],
)
def test_what_is_evaluated_after_each_epoch(val_size: int, test_every_epoch: bool, stages: list[str]) -> None:
    data = synthetic(val_size, test_every_epoch)
    assert list(data.evaluation_stages) == stages
    for stage, batches in zip(stages, data.val_dataloader(), strict=True):
        assert torch.equal(torch.cat([labels for _, labels in batches]), data.images(stage).labels)


@pytest.mark.parametrize("val_size", [100, 101, -1])
def test_a_val_size_that_leaves_nothing_to_train_on_is_named(val_size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.val_size={val_size}: .*less than 100"):
        synthetic(val_size)


class Recorder(BoringModel):
    """A model as anybody might write it, which keeps the labels that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trained += batch[1].tolist()
        return super().training_step(torch.rand(2, 32), batch_idx)


@pytest.mark.filterwarnings("ignore")
def test_any_trainer_gets_an_order_of_its_own_for_each_epoch() -> None:
    data, model = synthetic(val_size=0), Recorder()
    Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False).fit(model, datamodule=data)
    epochs = [Loader(data.images("train"), 32, seed=0) for _ in range(2)]
    epochs[1].set_epoch(1)
    assert model.trained == [label for epoch in epochs for batch in labels(epoch) for label in batch]


def test_a_device_gets_the_images_once_and_of_each_block_the_order() -> None:
    data, meta = synthetic(block_steps=2), torch.device("meta")
    first, second = (data.transfer_batch_to_device(block, meta, 0) for block in islice(data.train_dataloader(), 2))
    assert isinstance(first, Block)
    assert first.data is second.data
    assert {values.device for values in (*first.data, first.order)} == {meta}
    assert first.sizes == next(iter(data.train_dataloader())).sizes


def test_other_images_are_moved_anew() -> None:
    data, meta = synthetic(block_steps=2), torch.device("meta")
    first = data.transfer_batch_to_device(next(iter(data.train_dataloader())), meta, 0)
    other = Images(torch.zeros(9, 28, 28).byte(), torch.zeros(9).long())
    block = next(iter(Loader(other, 4, seed=0, block_steps=2)))
    assert len(data.transfer_batch_to_device(block, meta, 0).data.images) == 9 < len(first.data.images)


def test_the_first_steps_of_a_block_are_a_block() -> None:
    block = next(iter(synthetic(block_steps=3).train_dataloader()))
    whole, part = list(block.batches()), list(block.first(2).batches())
    assert len(part) == 2
    for mine, its in zip(part, whole, strict=False):
        assert torch.equal(mine.images, its.images)
        assert torch.equal(mine.labels, its.labels)
