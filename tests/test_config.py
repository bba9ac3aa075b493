from __future__ import annotations

from pathlib import Path

import pytest

from lenet.cli import compose_settings
from lenet.config import Settings, did_you_mean, known_keys
from lenet.errors import UserError
from tests.commands import PROJECT

CONF = PROJECT / "conf"


def settings(*overrides: str) -> Settings:
    return compose_settings(PROJECT, *overrides)


def choices() -> list[str]:
    """Every choice that a user of train.py has, as an override."""
    files = (path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
    return sorted(f"{path.parent}={path.stem}" for path in files if path.parts[0] not in ("recipe", "tune"))


@pytest.mark.parametrize("choice", choices())
def test_every_choice_is_valid(choice: str) -> None:
    settings(choice)


def test_the_defaults_are_the_published_runs() -> None:
    default = settings()
    assert default.optimizer.target == "torch.optim.SGD"
    assert (default.optimizer.lr, default.data.batch_size, default.trainer.max_epochs) == (0.9, 256, 10)
    assert default.data.val_size == 5000
    assert not default.test_every_epoch


def test_the_d2l_experiment_trains_on_all_images_and_watches_the_test_images() -> None:
    d2l = settings("experiment=d2l")
    assert (d2l.data.val_size, d2l.test_every_epoch, d2l.optimizer.lr) == (0, True, 0.9)


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [
        (["model=lenet_relu"], 0.1),
        (["model=lenet_relu", "optimizer=adam"], 0.001),
        (["model=lenet_relu", "optimizer.lr=0.3"], 0.3),
    ],
    ids=str,
)
def test_a_model_brings_the_rate_that_suits_it_unless_the_user_says_otherwise(overrides: list[str], lr: float) -> None:
    assert settings(*overrides).optimizer.lr == lr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc: input should be a valid number"),
        ("optimizer.lr=-1", "optimizer.lr=-1: input should be greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan: input should be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr=inf: input should be a finite number"),
        ("optimizer.lr=null", "optimizer.lr=None: input should be a valid number"),
        ("optimizer.momentum=1", "optimizer.momentum=1: input should be less than 1"),
        ("optimizer.nesterov=true", "optimizer.nesterov=true: needs optimizer.momentum greater than 0"),
        ("data.batch_size=0", "data.batch_size=0: input should be greater than or equal to 1"),
        ("data.batch_size=1.5", "data.batch_size=1.5: input should be a valid integer"),
        ("data.batch_size=true", "data.batch_size=True: input should be a valid integer"),
        ("data.val_size=60000", "data.val_size=60000: input should be less than or equal to 59999"),
        ("data.mirrors=[file:///etc]", "data.mirrors.0=file:///etc: string should match pattern '^https?://'"),
        ("trainer.max_epochs=-3", "trainer.max_epochs=-3: input should be greater than or equal to 1"),
        ("+trainer.devices=2", "trainer.devices=2: is set by device.devices"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches=1: is set by another argument: +trainer.limit_train"),
        ("trainer=5", "trainer=5: should be a mapping"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("trainer.max_steps=0", "trainer.max_steps=0: should be at least 1, or -1 for no limit"),
        ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: should be greater than 0"),
        ("precision=fp8", "precision=fp8: input should be 'float32' or 'bf16'"),
        ("+trainer.precision=64-true", "trainer.precision=64-true: is set by precision=float32 or precision=bf16"),
        ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2: is set by a larger data.batch_size"),
        ("seed=4294967296", "seed=4294967296: input should be less than or equal to 4294967295"),
        ("device.num_nodes=2", "device.num_nodes=2: several machines need device=ddp"),
        ("dashboard=none", "dashboard=none: input should be 'full' or 'minimal'"),
        ("device.devices=0", "device.devices=0: input should be greater than or equal to 1"),
        ("+optimizer.momentun=0.9", "optimizer.momentun: no such key; did you mean optimizer.momentum?"),
        ("+zebra=1", "zebra: no such key"),
        ("~seed", "seed: is missing from the configuration"),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_remedy(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(override)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "smallest"),
    [
        (("data.batch_size=27",), "a batch of 1 for 1 device"),
        (("data.batch_size=8", "device=ddp"), None),
        (("data.batch_size=2", "device=ddp"), "a batch of 2 for 2 device"),
        (("data.batch_size=1",), "a batch of 1 for"),
    ],
    ids=str,
)
def test_batch_normalisation_needs_two_images_on_each_device(overrides: tuple[str, ...], smallest: str | None) -> None:
    settings("model=lenet", *overrides)
    if smallest is None:
        settings("model=lenet_norm", *overrides)
        return
    with pytest.raises(UserError, match=rf"^data\.batch_size=\d+: leaves {smallest}"):
        settings("model=lenet_norm", *overrides)


def test_an_unknown_algorithm_is_named_with_the_five_that_exist() -> None:
    message = r"^layers\.algorithm=magic: input should be 'loops', 'taps', 'im2col', 'kernel_matrix' or 'fft'$"
    with pytest.raises(UserError, match=message):
        settings("layers=im2col", "layers.algorithm=magic")


@pytest.mark.parametrize("algorithm", ["loops", "taps", "im2col", "kernel_matrix", "fft"])
def test_the_layers_of_a_choice_use_its_algorithm(algorithm: str) -> None:
    layers = settings(f"layers={algorithm}").section("layers")
    assert {layers[part]["algorithm"] for part in ("conv", "avg_pool", "max_pool")} == {algorithm}
    assert layers["conv"]["_target_"] == "lenet.layers.Conv2d"


def test_held_out_images_must_leave_some_to_train_on() -> None:
    with pytest.raises(UserError, match=r"^data\.val_size=9: should be less than data\.train_size=9$"):
        settings("data=synthetic", "data.train_size=9", "data.val_size=9")


@pytest.mark.parametrize(
    "override",
    [
        "optimizer._target_=os.system",
        "+scheduler={_target_:os.system}",
        "data._target_=os.system",
        "model._target_=os.system",
        "model.activation._target_=os.system",
        "layers.conv._target_=os.system",
        "optimizer={_target_:os.system}",
    ],
)
def test_a_class_that_is_not_listed_cannot_be_named(override: str) -> None:
    with pytest.raises(UserError, match=r"_target_=os\.system: (not allowed here; choose from|input should be) "):
        settings(override)


def test_sections_are_plain_and_ready_to_instantiate() -> None:
    assert settings("optimizer=adam").section("optimizer") == {
        "_target_": "torch.optim.Adam",
        "_partial_": True,
        "lr": 0.001,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "fused": True,
    }


def test_the_closest_key_is_suggested() -> None:
    assert did_you_mean("optimzer.lr", known_keys()) == "; did you mean optimizer.lr?"
    assert did_you_mean("zzz", known_keys()) == ""


def test_help_names_every_choice_and_the_real_defaults() -> None:
    text = (Path(CONF) / "hydra" / "help" / "lenet.yaml").read_text()
    for choice in choices():
        group, name = choice.split("=")
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{group} ")]
        assert name in line.split(maxsplit=1)[1].split()[0].split("|"), choice
    default = settings()
    for key, value in {
        "seed": default.seed,
        "trainer.max_epochs": default.trainer.max_epochs,
        "data.batch_size": default.data.batch_size,
        "data.val_size": default.data.val_size,
        "optimizer.lr": default.optimizer.lr,
    }.items():
        assert f"{key}={value} " in text
