from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lenet.data import synthetic
from lenet.monitor.dashboard import THRESHOLDS, Evaluation, evaluating, mistakes, precision_recall
from lenet.monitor.drawing import confusion
from tests.conftest import Finished, TrainCommand

SMALL = ("data=synthetic", "data.train_size=600", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=2")
EPOCHLY = {
    "network/filters",
    "val/predictions",
    "val/confusion",
    "val/mistakes",
    "network/act1",
    "network/act2",
}
PARAMETERS = [f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")]


def drawn(count: int = 200, seed: int = 0) -> Evaluation:
    """An evaluation of noise, in which the right class is a little more likely."""
    random = np.random.default_rng(seed)
    labels = random.integers(10, size=count)
    logits = random.normal(size=(count, 10)).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return Evaluation(random.integers(256, size=(count, 28, 28), dtype=np.uint8), labels, logits)


@pytest.fixture(scope="module")
def run(train_command: TrainCommand) -> Finished:
    run = train_command(*SMALL)
    assert run.status == 0, run.stderr
    return run


def test_every_epoch_has_its_pictures_and_the_test_one(run: Finished) -> None:
    assert set(run.events.Tags()["images"]) == EPOCHLY | {"test/confusion"}
    for tag in EPOCHLY:
        assert [image.step for image in run.events.images.Items(tag)] == [2, 4]
    assert len(run.events.Images("test/confusion")) == 1


def test_every_epoch_has_histograms_of_weights_and_gradients(run: Finished) -> None:
    tags = {f"{kind}/{name}" for kind in ("weights", "gradients") for name in PARAMETERS}
    assert set(run.events.Tags()["histograms"]) == tags
    for tag in tags:
        assert [histogram.step for histogram in run.events.Histograms(tag)] == [2, 4]
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    weight = checkpoint["state_dict"]["net.fc1.weight"]
    histogram = run.events.Histograms("weights/fc1.weight")[-1].histogram_value
    assert histogram.num == weight.numel() == sum(histogram.bucket)
    assert histogram.max == pytest.approx(weight.max().item())
    below = (weight <= histogram.bucket_limit[9]).sum().item()
    assert abs(sum(histogram.bucket[:10]) - below) <= 2  # of 48,000; where a value is a limit


def test_every_class_has_a_curve_of_precision_and_recall(run: Finished) -> None:
    curves = [tag for tag in run.events.Tags()["tensors"] if tag.startswith("val/")]
    assert curves == [f"val/{name}" for name in synthetic.CLASSES]


def test_the_confusion_matrix_shows_the_test_accuracy(run: Finished) -> None:
    saved = run.events.Images("test/confusion")[0].encoded_image_string
    data = np.genfromtxt(run.folder / "projector" / "labels.tsv", dtype=str, delimiter="\t", skip_header=1)
    place = {name: number for number, name in enumerate(synthetic.CLASSES)}
    counts = np.zeros((10, 10), int)
    for true, predicted, verdict in data:
        counts[place[true], place[predicted]] += 1
        assert verdict == ("right" if true == predicted else "wrong")
    assert counts.trace() / counts.sum() == pytest.approx(run.metrics["test/acc"])
    expected = np.asarray(confusion(counts, synthetic.CLASSES).convert("RGB"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(saved)).convert("RGB")), expected)


def test_minimal_leaves_the_curves(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "dashboard=minimal")
    tags = run.events.Tags()
    assert (tags["images"], tags["histograms"], tags["tensors"]) == ([], [], ["config/text_summary"])
    assert not any(tag.startswith(("figure/", "final/")) for tag in tags["scalars"])
    assert not (run.folder / "projector").exists()
    assert run.metrics["dashboard_seconds"] == 0


def test_pictures_change_nothing_of_the_training(train_here: TrainCommand) -> None:
    for model in ("lenet", "lenet_norm"):
        full, minimal = (
            torch.load(
                train_here(*SMALL, f"model={model}", f"dashboard={kind}").folder / "checkpoints" / "last.ckpt",
                weights_only=True,
            )["state_dict"]
            for kind in ("full", "minimal")
        )
        assert all(torch.equal(value, minimal[name]) for name, value in full.items())


def test_where_the_test_images_are_evaluated_after_each_epoch(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "data.val_size=0", "test_every_epoch=true")
    assert set(run.events.Tags()["images"]) == {"network/filters", "test/confusion"}
    assert [image.step for image in run.events.images.Items("test/confusion")] == [6]
    assert run.scalars("figure/held_out_acc") == [
        (1, run.scalars("test/acc")[0][1]),
        (2, run.scalars("test/acc")[1][1]),
    ]


@pytest.mark.parametrize(
    ("images", "measure"), [([], "val/acc"), (["data.val_size=0", "test_every_epoch=true"], "test/acc")]
)
def test_the_figure_has_no_point_where_nothing_was_evaluated(
    train_here: TrainCommand, images: list[str], measure: str
) -> None:
    run = train_here(*SMALL, *images, "trainer.max_epochs=3", "+trainer.check_val_every_n_epoch=2")
    assert run.scalars("figure/held_out_acc") == [(2, run.scalars(measure)[0][1])]
    assert len(run.scalars("figure/train_acc")) == 3
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2


def test_probabilities_are_softmax_and_counts_are_counted() -> None:
    evaluation = drawn()
    expected = torch.from_numpy(evaluation.logits).softmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(evaluation.probabilities), expected)
    assert evaluation.counts.sum() == 200
    for true, given in ((3, 3), (3, 4)):
        both = (evaluation.labels == true) & (evaluation.predicted == given)
        assert evaluation.counts[true, given] == both.sum()


def test_precision_and_recall_by_their_definition() -> None:
    evaluation = drawn()
    curves = precision_recall(evaluation)
    for label, step in ((0, 0), (2, 5), (7, 40), (9, THRESHOLDS - 1)):
        positive = evaluation.probabilities[:, label] >= step / (THRESHOLDS - 1)
        of_class = evaluation.labels == label
        true, false = (positive & of_class).sum(), (positive & ~of_class).sum()
        negative, missed = (~positive & ~of_class).sum(), (~positive & of_class).sum()
        precision, recall = true / max(1, true + false), true / max(1, true + missed)
        assert curves[label, :, step].tolist() == [true, false, negative, missed, precision, recall]


def test_mistakes_are_those_made_with_most_certainty() -> None:
    labels = np.array([0, 1, 2, 3])
    logits = np.zeros((4, 10), np.float32)
    logits[0, 0] = 9  # right
    logits[1, 5], logits[2, 6], logits[3, 7] = 2, 3, 1
    classes = [f"class {number}" for number in range(10)]
    picture = mistakes(Evaluation(np.zeros((4, 28, 28), np.uint8), labels, logits), classes)
    assert picture is not None
    ordered = mistakes(Evaluation(np.zeros((3, 28, 28), np.uint8), labels[[2, 1, 3]], logits[[2, 1, 3]]), classes)
    assert ordered is not None
    assert picture.tobytes() == ordered.tobytes()
    assert mistakes(Evaluation(np.zeros((1, 28, 28), np.uint8), labels[:1], logits[:1]), classes) is None


def test_evaluating_restores_what_was() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    with evaluating(net):
        assert not net[0].training
        assert not torch.is_grad_enabled()
    assert net[0].training
    assert torch.is_grad_enabled()
