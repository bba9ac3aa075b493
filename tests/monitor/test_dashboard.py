import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor, nn
from torch.optim import SGD

from lenet.data import Synthetic
from lenet.data.augment import Augment
from lenet.errors import DivergenceError
from lenet.models import LeNet
from lenet.monitor import dashboard as module_of_dashboard
from lenet.monitor.dashboard import Dashboard, Epoch, show_network
from lenet.monitor.drawing import confusion
from lenet.monitor.pictures import Evaluation, write_embedding
from lenet.monitor.tensorboard import FIGURE_TAGS, RunLogger, read_events
from lenet.training.module import Classifier
from tests.training.small import Noise, at, fit, scalars

OF_AN_EPOCH = {"val/predictions", "val/confusion", "val/mistakes"}
NAMES = [f"class {number}" for number in range(10)]


class Residual(nn.Module):
    """No Sequential, and activations that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images).relu()
        scores: Tensor = self.head((hidden + self.norm(self.second(hidden))).relu())
        return scores.mean((2, 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit([Dashboard()], RunLogger(folder), test=True)
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    return read_events(run)


def test_every_epoch_has_its_pictures_and_the_test_one(events: EventAccumulator) -> None:
    of_an_epoch = OF_AN_EPOCH | {"network/filters", "network/conv1", "network/conv2"}
    assert set(events.Tags()["images"]) == of_an_epoch | {"test/confusion"}
    for tag in of_an_epoch:
        assert [image.step for image in events.Images(tag)] == [4, 8]
    assert [image.step for image in events.Images("test/confusion")] == [8]


def test_every_epoch_has_histograms_of_weights_and_gradients(events: EventAccumulator) -> None:
    names = [name for name, _ in LeNet().named_parameters()]
    assert set(events.Tags()["histograms"]) == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in names}
    histogram = events.Histograms("gradients/fc1.weight")[-1].histogram_value
    assert histogram.num == sum(histogram.bucket) == 48_000
    assert histogram.min < histogram.max


def test_every_class_has_a_precision_recall_curve(events: EventAccumulator) -> None:
    assert {f"val/{name}" for name in NAMES} <= set(events.Tags()["tensors"])


def test_the_figure_is_drawn_by_epoch(events: EventAccumulator) -> None:
    for tag, source in zip(FIGURE_TAGS, ("train/loss", "train/acc", "val/acc"), strict=True):
        points = [(point.step, point.value) for point in events.Scalars(tag)]
        assert points == list(enumerate((point.value for point in events.Scalars(source)), start=1))
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_the_confusion_matrix_and_the_projector_show_the_test_images(run: Path, events: EventAccumulator) -> None:
    rows = [line.split("\t") for line in (run / "projector" / "labels.tsv").read_text().splitlines()[1:]]
    counts = np.zeros((10, 10), int)
    for true, predicted, _ in rows:
        counts[NAMES.index(true), NAMES.index(predicted)] += 1
    assert counts.trace() / 24 == pytest.approx(events.Scalars("test/acc")[0].value)
    logged = Image.open(io.BytesIO(events.Images("test/confusion")[0].encoded_image_string)).convert("L")
    drawn = confusion(counts, NAMES).convert("L")
    assert np.abs(np.asarray(logged).astype(int) - np.asarray(drawn)).max() < 40  # the palette has fewer shades
    assert np.fromfile(run / "projector" / "points.bytes", np.float32).shape == (24 * 84,)


@pytest.mark.parametrize("net", [LeNet, partial(LeNet, norm=nn.BatchNorm2d, hidden_norm=nn.BatchNorm1d, dropout=0.5)])
def test_drawing_does_not_change_training(tmp_path: Path, net: Callable[[], nn.Module]) -> None:
    states = []
    for callbacks in ([], [Dashboard()]):
        torch.manual_seed(3)
        module = Classifier(net(), seed=0)
        states.append(fit(callbacks, RunLogger(tmp_path), module=module).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("net", "maps", "hidden"),
    [
        (Residual(), {"network/filters", "network/first", "network/second", "network/head"}, 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(81, 5), nn.ReLU(), nn.Linear(5, 3)), set(), 5),
    ],
    ids=["without linear layers", "without convolutions"],
)
def test_other_networks_show_what_they_have(tmp_path: Path, net: nn.Module, maps: set[str], hidden: int) -> None:
    fit([Dashboard()], RunLogger(tmp_path), data=Noise(size=9, classes=3), module=Classifier(net), test=True)
    assert set(read_events(tmp_path).Tags()["images"]) == maps | OF_AN_EPOCH | {"test/confusion"}
    assert (tmp_path / "projector" / "points.bytes").stat().st_size == 24 * hidden * 4


def test_test_images_that_are_evaluated_each_epoch_are_shown_at_the_end(tmp_path: Path) -> None:
    fit([Dashboard()], RunLogger(tmp_path), data=Noise(stages=("test",)))
    events = read_events(tmp_path)
    assert [image.step for image in events.Images("test/confusion")] == [8]
    assert not OF_AN_EPOCH & set(events.Tags()["images"])
    assert len(events.Scalars("figure/held_out_acc")) == 2


def test_the_figure_has_no_point_where_nothing_was_validated(tmp_path: Path) -> None:
    fit([Dashboard()], RunLogger(tmp_path), max_epochs=3, check_val_every_n_epoch=2)
    assert [step for step, _ in scalars(tmp_path, "figure/held_out_acc")] == [2]


def test_validation_loaders_that_were_not_announced_are_not_drawn(tmp_path: Path) -> None:
    data = Noise()
    data.val_dataloader = lambda: [data.loader(24), data.loader(48)]  # type: ignore[method-assign]
    fit([Dashboard()], RunLogger(tmp_path), data=data)
    assert [image.step for image in read_events(tmp_path).Images("val/confusion")] == [4, 8]


@pytest.mark.parametrize("most", [1, 32])
def test_each_epoch_is_drawn_as_it_was_whenever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module_of_dashboard, "MOST_KEPT", most)
    weights: list[float] = []
    watch = LambdaCallback(on_train_epoch_end=lambda trainer, module: weights.append(float(module.net.fc3.bias.max())))
    fit([Dashboard(), watch], RunLogger(tmp_path))
    events = read_events(tmp_path)
    assert [image.step for image in events.Images("val/confusion")] == [4, 8]
    drawn = [event.histogram_value.max for event in events.Histograms("weights/fc3.bias")]
    assert drawn == pytest.approx(weights)
    assert len(set(drawn)) == 2


def test_augmented_images_are_shown_and_the_random_numbers_stay(tmp_path: Path) -> None:
    losses = []
    for callbacks in ([], [Dashboard()]):
        torch.manual_seed(3)
        module = Classifier(LeNet(), seed=None, augment=Augment(flip=0.5, mixup=0.2), init="none")
        fit(callbacks, RunLogger(tmp_path), data=Synthetic(train_size=60, test_size=10, val_size=10), module=module)
        losses.append(module.metrics["train/loss"])
    assert [image.step for image in read_events(tmp_path).Images("train/augmented")] == [0]
    assert losses[0] == losses[1]


def test_what_led_to_a_divergence_is_drawn(tmp_path: Path) -> None:
    module = Classifier(LeNet(), partial(SGD, lr=0.1), seed=0)
    spoil = at(2, lambda module: module.net.fc3.bias.data.fill_(torch.nan))
    with pytest.raises(DivergenceError):
        fit([Dashboard(), spoil], RunLogger(tmp_path), module=module)
    assert [image.step for image in read_events(tmp_path).Images("val/confusion")] == [4]


def test_without_tensorboard_nothing_is_drawn() -> None:
    dashboard = Dashboard()
    fit([dashboard], logger=False, test=True)
    assert dashboard.stopwatch.seconds == 0


def evaluation(labels: list[int], predicted: list[int], certainty: list[float]) -> Evaluation:
    probabilities = np.full((len(labels), 10), 0.01)
    probabilities[range(len(labels)), predicted] = certainty
    images = np.random.default_rng(0).integers(256, size=(len(labels), 28, 28), dtype=np.uint8)
    return Evaluation(images, np.array(labels), probabilities, probabilities[:, :7], NAMES)


def test_counts_have_true_classes_as_rows() -> None:
    counts = evaluation([3, 3, 3, 0], [4, 4, 3, 0], [0.5] * 4).counts
    assert (counts[3, 4], counts[3, 3], counts[0, 0], counts.sum()) == (2, 1, 1, 4)


def test_mistakes_are_those_made_with_most_certainty() -> None:
    assert evaluation([0, 1, 2, 3], [0, 5, 6, 7], [0.9, 0.5, 0.8, 0.3]).mistakes.tolist() == [2, 1, 3]


def test_the_projector_has_points_images_and_labels(tmp_path: Path) -> None:
    test = evaluation([0] * 5, [1] * 5, [0.5] * 5)
    write_embedding(tmp_path, test)
    (embedding,) = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings
    saved = np.fromfile(tmp_path / embedding.tensor_path, np.float32)
    assert np.array_equal(saved.reshape(embedding.tensor_shape), test.hidden.astype(np.float32))
    labels = (tmp_path / embedding.metadata_path).read_text().splitlines()[1:]
    assert labels == ["class 0\tclass 1\twrong"] * 5
    sprites = np.asarray(Image.open(tmp_path / embedding.sprite.image_path))
    assert sprites.shape == (56, 84)  # two rows of three
    fourth = 255 - sprites[28:56, :28].astype(int)
    assert np.abs(fourth - test.images[3]).mean() < 30  # noise, as JPEG keeps it
    assert (sprites[28:, 56:] > 230).all()


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        *(([1.0, 1.0 + 1e-7], True), ([0.0, 1e-44], True), ([2.0, 2.0], True), ([1e30, -1e30], True)),
        *(([1.0, float("nan")], False), ([float("inf"), 0.0], False), ([1e30, 1e30], False)),
    ],
)
def test_a_histogram_of_any_values_is_drawn_or_left_out(tmp_path: Path, values: list[float], drawn: bool) -> None:
    logger = RunLogger(tmp_path)
    show_network(logger.experiment, Epoch(1, {"weight": torch.tensor(values)}, {}, torch.empty(0), [], {}))
    logger.flush()
    events = read_events(tmp_path)
    assert events.Tags()["histograms"] == (["weights/weight"] if drawn else [])
    if drawn:
        assert sum(events.Histograms("weights/weight")[0].histogram_value.bucket) == 2
