"""What a configuration says, and which mistakes in it are found without building anything."""

import pytest

from lenet.classes import build
from lenet.config import compose_settings as settings
from lenet.errors import UserError
from lenet.training.run import check
from tests.commands import PROJECT

CHOICES = [f"{path.parent.name}={path.stem}" for path in sorted((PROJECT / "conf").glob("*/*.yaml"))]


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith(("recipe", "tune"))])
def test_every_choice_is_valid(choice: str) -> None:
    settings(choice)


def test_the_defaults_are_the_published_runs() -> None:
    default = settings()
    assert default.optimizer.target == "torch.optim.SGD"
    assert (default.optimizer.lr, default.data.batch_size, default.trainer.max_epochs) == (0.9, 256, 10)
    assert (default.data.val_size, default.test_every_epoch) == (5000, False)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lr=abc", ["optimizer.lr=abc", "number"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan", "finite"]),
        ("optimizer.momentum=1", ["optimizer.momentum=1", "less than 1"]),
        ("data.batch_size=0", ["data.batch_size=0", "greater than or equal to 1"]),
        ("data.batch_size=1.5", ["data.batch_size=1.5", "integer"]),
        ("data.batch_size='64'", ["data.batch_size='64'", "integer"]),
        ("loss.label_smoothing=2", ["loss.label_smoothing=2", "less than or equal to 1"]),
        ("trainer.max_epochs=-3", ["trainer.max_epochs=-3", "greater than or equal to 1"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0", "-1 for no limit"]),
        ("+trainer.devices=2", ["trainer.devices=2", "device.devices"]),
        ("+trainer.logger=false", ["trainer.logger=False", "logger="]),
        ("+trainer.precision=64-true", ["trainer.precision=64-true", "precision=float32"]),
        ("seed=4294967296", ["seed=4294967296", "4294967295"]),
        ("precision=fp8", ["precision=fp8", "bf16"]),
        ("+zebra=1", ["zebra", "no such key"]),
        ("~seed", ["seed", "missing"]),
        ("trainer=5", ["trainer=5", "mapping"]),
        # Classes, and their arguments:
        ("+optimizer.momentun=0.9", ["optimizer.momentun=0.9", "did you mean momentum"]),
        ("+model.chanels=[6,16]", ["model.chanels=[6, 16]", "did you mean channels"]),
        ("+model.activation.slope=1", ["model.activation.slope=1", "no such argument"]),
        ("model._target_=my_models.Missing", ["model._target_=my_models.Missing", "cannot be imported"]),
        ("model._target_=torch.optim.SGD", ["model._target_=torch.optim.SGD", "torch.nn.Module"]),
        ("model.activation._target_=os.system", ["model.activation._target_=os.system", "torch.nn.Module"]),
        ("+loss.weight=[[{_target_:os.system}]]", ["loss.weight._target_=os.system", "torch.nn.Module"]),
        ("optimizer._target_=os.system", ["optimizer._target_=os.system", "torch.optim.Optimizer"]),
        ("data._target_=lenet.models.LeNet", ["data._target_=lenet.models.LeNet", "LightningDataModule"]),
        ("+callbacks.own={_target_:torch.nn.ReLU}", ["callbacks.own._target_=torch.nn.ReLU", "Callback"]),
        ("+logger.own={_target_:torch.nn.ReLU}", ["logger.own._target_=torch.nn.ReLU", "Logger"]),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_remedy(override: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        settings(override)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize("override", ["++model.activation._partial_=3", "++model._recursive_=3", "++model._args_=3"])
def test_mistakes_in_keys_of_hydras_own_are_mistakes(override: str) -> None:
    with pytest.raises(UserError, match=f"model: lenet.models.LeNet: .*{override.split('=')[0].split('.')[-1]}"):
        build("model", settings(override).section("model"))


def test_what_a_callback_is_made_of_may_be_anything() -> None:
    settings("+callbacks.own={_target_:lightning.pytorch.callbacks.LambdaCallback,setup:{_target_:torch.nn.ReLU}}")


def test_another_class_gets_none_of_the_arguments_of_the_one_before() -> None:
    rmsprop = settings("optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=0.5").section("optimizer")
    assert rmsprop["_target_"] == "torch.optim.RMSprop"
    assert rmsprop["alpha"] == 0.5
    assert "nesterov" not in rmsprop


def test_more_devices_than_there_are_get_no_processes() -> None:
    # In this process: where the check fails, a command would start them all.
    with pytest.raises(UserError, match=r"device\.devices=999: .*at most"):
        check(settings("data=synthetic", "device.devices=999"))
