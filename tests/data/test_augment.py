"""What augmentation does to a batch, and that the same random numbers give the same batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from lenet import Classifier, LeNet, Synthetic
from lenet.classes import build
from lenet.config import compose_settings
from lenet.data.augment import Augment
from lenet.errors import UserError
from tests.training.small import fit


def batch(count: int = 64, channels: int = 1, height: int = 28, width: int = 28) -> tuple[Tensor, Tensor]:
    """Pixels from 1 to 255, so that a zero is one that came in; another class for each neighbour."""
    images = torch.randint(1, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(0))
    return images.byte(), torch.arange(count) % 10


def augmented(images: Tensor, labels: Tensor, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return Augment(**settings)(images, labels)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images (N, C, H, W) with zeros where nothing comes from."""
    rolled = images.roll((down, right), (2, 3))
    height, width = images.shape[2:]
    rolled[:, :, : max(down, 0)] = rolled[:, :, height + min(down, 0) :] = 0
    rolled[:, :, :, : max(right, 0)] = rolled[:, :, :, width + min(right, 0) :] = 0
    return rolled


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 6, 9)])
@pytest.mark.parametrize(("shift", "flip"), [(0, 0.5), (1, 0.0), (2, 0.5)])
def test_each_image_is_moved_and_mirrored_on_its_own(
    channels: int, height: int, width: int, shift: int, flip: float
) -> None:
    images, labels = batch(300, channels, height, width)
    results, same = augmented(images, labels, shift=shift, flip=flip)
    steps = range(-shift, shift + 1)
    mirrors = [images, images.flip(3)][: 1 + (flip > 0)]
    possible = torch.stack([moved(each, down, right) for each in mirrors for down in steps for right in steps])
    found = (possible == results).flatten(2).all(2)
    assert bool((found.sum(0) == 1).all())  # each image is one of them
    assert bool(found.any(1).all())  # and each way to move was used
    assert torch.equal(same, labels)


def test_all_images_are_mirrored_with_probability_one() -> None:
    images, labels = batch()
    assert torch.equal(augmented(images, labels, flip=1.0)[0], images.flip(3))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_erasing_sets_a_square_to_zero_and_leaves_the_other_pixels(size: int) -> None:
    images, labels = batch(2000, 2, 12, 16)
    results, _ = augmented(images, labels, erase=size, erase_probability=0.5)
    erased = results == 0
    assert torch.equal(results[~erased], images[~erased])
    assert torch.equal(erased[:, 0], erased[:, 1])
    rows, columns = erased[:, 0].any(2).sum(1), erased[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, erased[:, 0].sum((1, 2)))
    assert max(rows) == max(columns) == size
    assert 0.4 < (rows > 0).float().mean() < 0.6
    assert bool(erased[:, 0].any(0).all())  # each pixel of some image


def test_mixup_mixes_neighbours_and_their_labels_alike() -> None:
    images, labels = batch()
    results, targets = augmented(images, labels, mixup=0.5)
    share = targets.gather(1, labels[:, None])
    assert torch.allclose(targets.gather(1, labels.roll(1)[:, None]), 1 - share)
    assert torch.allclose(targets.sum(1), torch.ones(64))
    one, other = images.flatten(1).float(), images.roll(1, 0).flatten(1).float()
    assert (results.flatten(1) - (share * one + (1 - share) * other)).abs().max() <= 0.5 + 1e-4
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_cutmix_pastes_a_box_of_the_neighbour_and_mixes_labels_by_area() -> None:
    images, labels = batch(500, 2, 12, 16)
    images[::2], images[1::2] = 1, 2
    results, targets = augmented(images, labels, mixup=0.5, cutmix=1.0)
    assert torch.equal(results[:, 0], results[:, 1])
    pasted = results[:, 0] != images[:, 0]
    assert torch.equal(results, torch.where(pasted[:, None], images.roll(1, 0), images))
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert torch.equal(rows * columns, pasted.sum((1, 2)))
    area = pasted.float().mean((1, 2))
    assert torch.allclose(targets.gather(1, labels.roll(1)[:, None])[:, 0], area)
    assert area.min() < 0.1
    assert area.max() > 0.7


def test_the_same_random_numbers_give_the_same_batch() -> None:
    images, labels = batch()
    settings = {"shift": 2, "flip": 0.5, "erase": 6, "mixup": 0.2}
    before = images.clone()
    first, again, other = (augmented(images, labels, seed, **settings) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, before)


def test_without_settings_nothing_changes() -> None:
    images, labels = batch()
    results, same = augmented(images, labels)
    assert results is images
    assert same is labels


@pytest.mark.parametrize("name", ["shift_flip", "mixup"])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_the_configured_augmentations_keep_shape_and_type(name: str, count: int) -> None:
    images, labels = build("augment", compose_settings(f"augment={name}").section("augment"))(*batch(count))
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape in ((count,), (count, 10))


@pytest.mark.parametrize(
    "transform", [v2.RandomHorizontalFlip(1.0), v2.RandomCrop(28, padding=1), v2.RandomErasing(1.0)]
)
def test_transforms_of_torchvision_are_augmentations(transform: Any) -> None:
    images, labels = batch()
    results, same = transform(images, labels)
    assert (results.shape, results.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(results, images)
    assert torch.equal(same, labels)


def test_images_are_mixed_until_a_share_of_the_run_is_over() -> None:
    augment, (images, labels) = Augment(mixup=0.2, mixup_until=0.5), batch()
    for share, dimensions in ((0.0, 2), (0.49, 2), (0.5, 1), (0.9, 1), (0.2, 2)):
        augment.begin_epoch(share)
        assert augment(images, labels)[1].dim() == dimensions


def test_a_run_tells_its_augmentation_how_far_it_is() -> None:
    shares: list[float] = []
    augment = Augment()
    augment.begin_epoch = shares.append  # type: ignore[assignment, method-assign]
    for blocks in (False, True):
        module = Classifier(LeNet(), seed=0, blocks=blocks, augment=augment)
        data = Synthetic(train_size=60, test_size=10, val_size=10, batch_size=10, block_steps=2 if blocks else 1)
        fit([], data=data, module=module, max_epochs=4)
    assert shares == 2 * [0.0, 0.25, 0.5, 0.75]


def test_floats_are_refused() -> None:
    images, labels = batch()
    with pytest.raises(UserError, match=r"augment.*bytes"):
        Augment(mixup=0.2)(images / 255, labels)


def test_a_device_without_images_has_nothing_to_augment() -> None:
    images, labels = batch(0)
    assert Classifier(LeNet(), augment=Augment(shift=1, mixup=0.2)).augmented(images, labels)[0] is images
