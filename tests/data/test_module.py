from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.data.module import BatchSampler, BlockSampler, FashionMNISTDataModule, ImageDataModule, SyntheticDataModule


def synthetic(val_size: int = 20, test_every_epoch: bool = False, seed: int = 0) -> ImageDataModule:
    data = SyntheticDataModule(
        train_size=100, test_size=30, batch_size=32, val_size=val_size, seed=seed, test_every_epoch=test_every_epoch
    )
    data.setup()
    return data


def indices(sampler: BatchSampler) -> list[int]:
    return [int(index) for share in sampler for index in share.indices]


def test_each_index_comes_once_an_epoch() -> None:
    sampler = BatchSampler(1000, 256, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(indices(sampler)) == list(range(1000))


@pytest.mark.parametrize(
    ("size", "sizes"), [(1000, [232, 256, 256, 256]), (512, [256, 256]), (100, [100]), (257, [1, 256])], ids=str
)
def test_what_does_not_fill_a_batch_comes_first(size: int, sizes: list[int]) -> None:
    sampler = BatchSampler(size, 256, seed=0)
    assert [len(share.indices) for share in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        torch.manual_seed(torch.seed())  # must not matter
        sampler = BatchSampler(100, 32, seed)
        sampler.set_epoch(epoch)
        return tuple(indices(sampler))

    pairs = [(seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in range(3)]
    orders = [order(*pair) for pair in pairs]
    assert orders == [order(*pair) for pair in reversed(pairs)][::-1]
    assert len(set(orders)) == len(pairs)


def test_without_a_seed_the_order_is_the_files() -> None:
    assert indices(BatchSampler(10, 4)) == list(range(10))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 100])
def test_blocks_hold_the_batches_in_their_order(steps: int) -> None:
    batches = BatchSampler(100, 32, seed=3)
    batches.set_epoch(2)
    sampler = BlockSampler(BatchSampler(100, 32, seed=3), steps)
    sampler.set_epoch(2)
    blocks = list(sampler)
    assert [len(block) for block in blocks[:-1]] == [steps] * (len(sampler) - 1)
    for ours, expected in zip((share for block in blocks for share in block), batches, strict=True):
        assert torch.equal(ours.indices, expected.indices)
        assert ours.total == expected.total


@pytest.mark.parametrize(("rank", "sizes"), [(0, {2, 16}), (1, {1, 16})])
def test_the_sizes_of_a_devices_batches(rank: int, sizes: set[int]) -> None:
    sampler = BatchSampler(99, 32, seed=0, rank=rank, world_size=2)
    assert sampler.own_sizes == sizes == {len(share.indices) for share in sampler}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_block_comes_apart_into_its_batches(rank: int) -> None:
    data = synthetic()
    shares = list(BatchSampler(80, 32, seed=0, rank=rank, world_size=2))  # of 16, 32 and 32 images over both
    everything = data._sets["train"]
    for batch, share in zip(everything[shares].batches(), shares, strict=True):
        assert torch.equal(batch.images, everything.images[share.indices])
        assert torch.equal(batch.labels, everything.labels[share.indices])
        assert (batch.total, batch.stage) == (share.total, "train")


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("size", [97, 100])
def test_devices_share_the_batches_of_one_device(world_size: int, size: int) -> None:
    alone = list(BatchSampler(size, 32, seed=5))
    together = zip(*(BatchSampler(size, 32, 5, rank, world_size) for rank in range(world_size)), strict=True)
    for whole, shares in zip(alone, together, strict=True):
        parts = torch.cat([share.indices for share in shares])
        assert sorted(parts.tolist()) == sorted(whole.indices.tolist())
        assert {share.total for share in shares} == {len(whole.indices)}


def test_the_validation_images_are_the_last_of_the_training_file() -> None:
    data = synthetic(val_size=20)
    everything, _ = data.load()
    (val_loader,) = data.val_dataloader()
    (val,) = val_loader
    assert torch.equal(val.images.squeeze(1), everything.images[80:])
    seen = torch.cat([block.images.squeeze(1).flatten(1) for block in data.train_dataloader()])
    held_in = everything.images[:80].flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, held_in.tolist()))


@pytest.mark.parametrize(
    ("val_size", "test_every_epoch", "stages"),
    [(20, False, ["val"]), (0, False, []), (0, True, ["test"]), (20, True, ["val", "test"])],
)
def test_what_is_evaluated_after_each_epoch(val_size: int, test_every_epoch: bool, stages: list[str]) -> None:
    loaders = synthetic(val_size, test_every_epoch).val_dataloader()
    assert [batch.stage for loader in loaders for batch in loader] == stages


def test_the_test_images_are_in_no_other_set() -> None:
    data = synthetic()
    _, test = data.load()
    (batch,) = data.test_dataloader()
    assert torch.equal(batch.images.squeeze(1), test.images)
    others = {tuple(row) for b in data.train_dataloader() for row in b.images.flatten(1).tolist()}
    assert others.isdisjoint(tuple(row) for row in test.images.flatten(1).tolist())


def test_setup_loads_once() -> None:
    class Counting(SyntheticDataModule):
        loads = 0

        def load(self):  # type: ignore[no-untyped-def]
            self.loads += 1
            return super().load()

    data = Counting(train_size=20, test_size=10, batch_size=8, val_size=5)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.loads == 1


def test_real_batches_equal_torchvisions_pictures_through_totensor(real_root: Path) -> None:
    data = FashionMNISTDataModule(str(real_root), batch_size=64, val_size=5000, seed=3)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    batch = next(next(iter(loader)).batches())
    assert isinstance(loader.sampler, BlockSampler)
    chosen = next(iter(loader.sampler))[0].indices.tolist()
    reference = FashionMNIST(str(real_root), train=True, transform=ToTensor())
    torch.testing.assert_close(batch.images / 255, torch.stack([reference[i][0] for i in chosen]), rtol=0, atol=0)
    assert batch.labels.tolist() == [reference[i][1] for i in chosen]
