import pytest
import torch

from lenet.data import Synthetic
from lenet.data.synthetic import draw
from lenet.errors import UserError


def test_the_same_seed_draws_the_same_images_and_another_does_not() -> None:
    first, again, other = draw(50, seed=0), draw(50, seed=0), draw(50, seed=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_bytes_in_fashion_mnists_shape_with_balanced_classes() -> None:
    drawn = draw(200, seed=0)
    assert drawn.images.shape == (200, 28, 28)
    assert drawn.images.dtype == torch.uint8
    assert drawn.labels.bincount().tolist() == [20] * 10


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(10, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, 0.8])
def test_a_size_that_is_no_count_is_named(size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.train_size={size}: .*at least 1"):
        Synthetic(train_size=size)
