"""What a network learns from trained ones, and what the command line says of wrong teachers."""

import pytest
import torch
from torch.nn import functional as F

from lenet import Classifier, LeNet
from lenet.config import compose_settings
from lenet.errors import UserError
from lenet.training.checkpoint import read
from lenet.training.distillation import Distillation
from lenet.training.run import check
from tests.conftest import Finished, TrainCommand

SMALL = ("data=synthetic", "data.train_size=1200", "data.val_size=200", "data.test_size=100", "trainer.max_epochs=1")
IMAGES = torch.rand(8, 1, 28, 28)


def test_the_distance_is_that_of_probabilities_at_a_temperature() -> None:
    teachers, logits, loss = [LeNet(), LeNet()], torch.randn(8, 10, requires_grad=True), torch.tensor(1.5)
    expected = torch.stack([(teacher(IMAGES) / 3).softmax(1) for teacher in teachers]).mean(0)
    own = (logits / 3).softmax(1)
    distance = 9 * (expected * (expected / own).log()).sum(1).mean()
    found = Distillation(teachers, temperature=3, weight=0.25)(loss, logits, IMAGES)
    torch.testing.assert_close(found, 0.75 * loss + 0.25 * distance)


def test_who_answers_as_the_teacher_has_nothing_to_learn() -> None:
    teacher = Classifier(LeNet(), seed=0)
    logits = teacher(IMAGES).detach().requires_grad_()
    loss = F.cross_entropy(logits.detach(), torch.zeros(8).long())
    Distillation([teacher], temperature=2, weight=1)(loss, logits, IMAGES).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.norm()) < 1e-6


def test_teachers_get_bytes_as_floats() -> None:
    teacher, logits, loss = LeNet(), torch.randn(8, 10), torch.tensor(1.0)
    images = torch.randint(256, (8, 1, 28, 28)).byte()
    distill = Distillation([teacher], temperature=2, weight=0.5)
    assert torch.equal(distill(loss, logits, images), distill(loss, logits, images / 255))


def test_a_run_learns_from_another(finished_run: Finished, train_here: TrainCommand) -> None:
    teacher = f"distill.teachers={finished_run.folder}"
    plain, taught = train_here(*SMALL), train_here(*SMALL, teacher, "distill.weight=0.9", "distill.temperature=4")
    weights = [
        read(run.folder / "checkpoints" / "last.ckpt")["state_dict"]["net.fc3.weight"] for run in (plain, taught)
    ]
    assert not torch.equal(*weights)
    assert taught.metrics["parameters"] == 61_706  # the teacher's are not the run's


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill.teachers=[nowhere]"], ["distill.teachers", "nowhere"]),
        (["distill.weight=2"], ["distill.weight=2"]),
        (["distill.temperature=0"], ["distill.temperature=0"]),
        (["+augment._target_=torch.nn.Tanh"], ["augment", "batch"]),
        (["augment=shift_flip", "augment.flip=2"], ["flip=2"]),
        (["decay=some"], ["decay=some"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(compose_settings(*SMALL, *words))
    assert all(word in str(caught.value) for word in said)
    assert "\n" not in str(caught.value)
