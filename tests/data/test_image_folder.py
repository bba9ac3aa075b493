"""One's own pictures in folders: split, read and trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lenet.data import ImageFolder
from lenet.errors import UserError
from tests.conftest import TrainCommand


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures each of dark bars on white, upright and lying, in colour, of odd sizes and two formats."""
    random = np.random.default_rng(0)
    for name in ("lying", "upright"):
        folder = tmp_path / "pictures" / name / "more"
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = np.full((50, 60, 3), 255, np.uint8)
            place = int(random.integers(15, 35))
            pixels[place : place + 8, 5:-5] = random.integers(100, size=3)
            image = Image.fromarray(pixels if name == "lying" else pixels.swapaxes(0, 1))
            image.save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    return tmp_path / "pictures"


def test_pictures_are_split_by_class_and_the_same_each_time(pictures: Path) -> None:
    (pictures / ".DS_Store").write_bytes(b"of a file manager")
    (pictures / "lying" / ".hidden").write_bytes(b"of a file manager")
    data = ImageFolder(pictures)
    data.setup()
    assert data.class_names == ("lying", "upright")
    for stage, size in (("train", 28), ("val", 4), ("test", 8)):
        images, labels = data.images(stage)
        assert images.shape == (size, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [size // 2, size // 2]
        assert images.float().mean() < 80  # light on dark
    again = ImageFolder(pictures, seed=7)
    again.setup()
    assert torch.equal(again.images("test").images, data.images("test").images)
    other = ImageFolder(pictures, split_seed=1)
    other.setup()
    assert not torch.equal(other.images("test").images, data.images("test").images)


def test_what_is_no_picture_is_named_and_left_out(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "lying" / "notes.txt").write_text("no picture")
    data = ImageFolder(pictures)
    data.setup()
    assert sum(len(data.images(stage).labels) for stage in ("train", "val", "test")) == 40
    assert any("notes.txt" in message for message in caplog.messages)


def test_wrong_folders_and_shares_are_named(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*nowhere: should have a folder for each class"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data.root=.*needs two classes.*more"):
        ImageFolder(pictures / "lying")
    with pytest.raises(UserError, match=r"data\.test_share=0\.95"):
        ImageFolder(pictures, test_share=0.95)


def test_a_network_learns_them(pictures: Path, train_here: TrainCommand) -> None:
    words = ("data=image_folder", f"data.root={pictures}", "data.batch_size=8", "model=lenet_norm", "optimizer=adam")
    run = train_here(*words, "trainer.max_epochs=20")
    assert run.metrics["test/acc"] >= 0.875  # seven of eight
