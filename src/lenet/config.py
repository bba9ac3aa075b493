"""From a composed configuration to checked settings.

conf/ holds the values, this file the rules: plain numbers have a type and a range in the models below, and a section
with a `_target_` names a class (see lenet.classes).
"""

import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lenet.classes import IN_CHECKPOINTS, arguments_of, check_named, located
from lenet.errors import UserError, closest

_SOURCE = Path(__file__).resolve().parents[2]
_IS_CHECKOUT = (_SOURCE / "conf" / "train.yaml").is_file()

PROJECT = _SOURCE if _IS_CHECKOUT else Path.cwd()
"""Where data/ and outputs/ lie: the folder of train.py, or the current one of an installed wheel. `${project:}`."""

CONF = _SOURCE / "conf" if _IS_CHECKOUT else Path(__file__).resolve().parent / "conf"
"""What can be chosen; a wheel carries a copy."""

OmegaConf.register_new_resolver("project", lambda: str(PROJECT), replace=True)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
AnySection = TypeVar("AnySection", bound="Section")

AUTO = "auto"
"""As the value of `resume`: resume the run in hydra.run.dir, or begin it if there is none."""

PATHS = ("data.root", "distill.teachers", "init_from", "resume", "sweep.resume")
"""Settings that are paths, as seen from where the command was typed; `~` is the home folder."""

NO_DEFAULT = ("augment=shift_flip", "average=ema", "scheduler=cosine")
"""Choices of groups that are empty by default, so that their keys are known."""

ONE_CLASS = (*IN_CHECKPOINTS, "data", "augment", "average")
NAMED_CLASSES = ("callbacks", "logger")
"""The sections that name a class; those that have a name for each of their classes."""


class Section(BaseModel):
    """A mapping in the configuration: no key beyond those declared, no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ClassSection(Section):
    """A section that names a class; its other keys are the arguments."""

    model_config = ConfigDict(extra="allow")
    target: Text = Field(alias="_target_")


class RangedSection(ClassSection):
    """The same, with ranges for the arguments that have one meaning in every class; a class checks its others."""

    lr: Positive = 1.0
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    final_lr: NonNegative = 0.0
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: Count = 1
    val_size: Annotated[int, Field(ge=0)] = 0


class Device(Section):
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count
    num_nodes: Count

    @property
    def total(self) -> int:
        """Devices on all machines."""
        return self.devices * self.num_nodes


SET_ELSEWHERE = {
    "accelerator": "device=cpu, device=gpu or device.accelerator",
    "devices": "device.devices",
    "num_nodes": "device.num_nodes",
    "strategy": "device.devices and device.num_nodes: several devices train with Lightning's strategy ddp",
    "logger": "logger=tensorboard, logger=csv and so on",
    "callbacks": "callbacks=early_stopping and so on",
    "precision": "precision=float32 or precision=bf16",
    "default_root_dir": "hydra.run.dir",
    "deterministic": "deterministic",
}
"""Arguments of Lightning's Trainer that have another key here."""


class Trainer(Section):
    """Three arguments of Lightning's Trainer with our defaults; the others pass through."""

    model_config = ConfigDict(extra="allow")
    max_epochs: Count
    max_steps: Annotated[int, Field(ge=-1)]  # -1 is Lightning's word for no limit
    log_every_n_steps: Annotated[int, Field(ge=1, le=2**31 - 1)]

    @model_validator(mode="after")
    def arguments_have_one_owner(self) -> Self:
        if self.max_steps == 0:
            raise ValueError("max_steps=0: should be at least 1, or -1 for no limit")
        for name, value in (self.model_extra or {}).items():
            if name in SET_ELSEWHERE:
                raise ValueError(f"{name}={value}: is set by {SET_ELSEWHERE[name]}")
        return self


class Distilling(Section):
    teachers: list[Text] | Text | None = None
    temperature: Positive = 1.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5


class Saving(Section):
    every_seconds: NonNegative


class Resuming(Section):
    resume: Text | None


class Settings(Section):
    """One run's configuration, checked. The README has what each key means."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    test_every_epoch: bool
    fuse: bool
    dashboard: Literal["full", "minimal"]
    precision: Literal["float32", "bf16"]
    init: Text
    init_from: Text | None = None
    init_from_strict: bool = True
    layers: dict[str, Any]
    model: ClassSection
    loss: RangedSection
    optimizer: RangedSection
    scheduler: RangedSection | None
    data: RangedSection
    augment: ClassSection | None = None
    average: ClassSection | None = None
    decay: Literal["all", "weights"] = "all"
    distill: Distilling = Distilling()
    callbacks: dict[str, ClassSection] | None = None
    logger: dict[str, ClassSection] | None = None
    device: Device
    deterministic: bool
    trainer: Trainer
    checkpoint: Saving
    launcher: dict[str, Any] | None = None
    sweep: Resuming
    resume: Text | None

    @property
    def plain(self) -> dict[str, Any]:
        """What makes a run, as plain dicts, lists and scalars; not how it was started."""
        plain = self.model_dump(by_alias=True, exclude_unset=True, exclude={"resume", "launcher"})
        plain["sweep"]["resume"] = None
        return dict(json.loads(json.dumps(plain)))

    def section(self, name: str) -> dict[str, Any]:
        """The section as plain dicts, lists and scalars; empty if it is null."""
        return dict(self.model_dump(by_alias=True, exclude_unset=True, include={name}).get(name) or {})


def read_settings(config: DictConfig, overrides: Iterable[str] | None = None) -> Settings:
    """The checked settings of a composed configuration; `overrides` are by default those in Hydra's section.

    Raises a UserError that names the first key that breaks a rule, its value, and the rule; or an
    OmegaConfBaseException if an interpolation does not resolve.
    """
    given = OmegaConf.select(config, "hydra.overrides.task") if overrides is None else overrides
    words = {str(word).lstrip("+~").partition("=")[0] for word in given or ()}
    # Hydra's own section has keys that hold nothing before a job starts.
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "tune")])
    plain = OmegaConf.to_container(ours, resolve=True)
    assert isinstance(plain, dict)
    here = Path(HydraConfig.get().runtime.cwd if HydraConfig.initialized() else "")
    for group, _, leaf in (key.rpartition(".") for key in PATHS):
        holder = plain.get(group) if group else plain
        if isinstance(holder, dict) and (given := holder.get(leaf)):
            holder[leaf] = (
                [_absolute(each, here) for each in given] if isinstance(given, list) else _absolute(given, here)
            )
    settings = validated(Settings, plain)
    for name in ONE_CLASS:
        if (section := settings.section(name)) and f"{name}._target_" in words:
            # The section's other keys were written for the class that stood there before.
            accepted = arguments_of(located(name, section["_target_"], name)) or ()
            plain[name] = {
                key: value
                for key, value in section.items()
                if key.startswith("_") or key in accepted or f"{name}.{key}" in words
            }
    settings = validated(Settings, plain)
    for name in ONE_CLASS:
        if section := settings.section(name):
            check_named(name, section, name)
    for name in NAMED_CLASSES:
        for key, section in settings.section(name).items():
            check_named(f"{name}.{key}", section, name)
    return settings


def _absolute(path: Any, here: Path) -> Any:
    """A path as seen from everywhere; what is none stays as it is."""
    is_path = isinstance(path, str) and path not in ("", AUTO) and "://" not in path
    return str((here / Path(path).expanduser()).absolute()) if is_path else path


def validated(rules: type[AnySection], values: object, key: str = "") -> AnySection:
    """The values (plain dicts, lists and scalars) as a section; `key` is where they stand in the configuration.

    Raises a UserError that names the first key that breaks a rule, its value, and the rule.
    """
    try:
        return rules.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_mistake(error, key)) from None


def compose_config(head: str, overrides: Sequence[str]) -> DictConfig:
    """What conf/`head`.yaml and these overrides make, unchecked, with Hydra's own section; raises a HydraException."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(head, overrides=with_home(overrides), return_hydra_config=True)


def with_home(words: Iterable[str]) -> list[str]:
    """The settings with the home folder in place of a `~` that begins a value, which Hydra cannot read."""
    return [re.sub(r"^([^=]+=)~(?=/|$)", lambda found: f"{found[1]}{Path.home()}", word) for word in words]


def compose_settings(*overrides: str) -> Settings:
    """The settings that `train.py` would run with these overrides; refused as the command line would."""
    return read_settings(compose_config("train", overrides))


def as_word(key: str, value: object) -> str:
    """A setting as a word of a command, for Hydra and for a shell, whatever signs are in the value."""
    plain = re.fullmatch(r"[\w./-]+", str(value), re.ASCII) is not None
    quoted = str(value).replace('"', '\\"')
    return shlex.quote(f"{key}={value}" if plain else f'{key}="{quoted}"')


def _first_mistake(error: ValidationError, section: str) -> str:
    mistake = error.errors(include_url=False)[0]
    key = ".".join([section] * bool(section) + [str(part) for part in mistake["loc"]])
    message = mistake["msg"][:1].lower() + mistake["msg"][1:]
    match mistake["type"]:
        case "value_error":  # one of the validators above, which name the key themselves
            return f"{key}.{mistake['ctx']['error']}" if key else str(mistake["ctx"]["error"])
        case "extra_forbidden":
            return no_such_key(key)
        case "missing":
            return f"{key}: is missing from the configuration"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key}={mistake['input']}: should be a mapping, as in the files below conf/"
        case _:
            value = mistake["input"]
            quoted = isinstance(value, str) and value.strip("+-.eE0123456789") == ""  # shows what is wrong with '1'
            return f"{key}={value!r}: {message}" if quoted else f"{key}={value}: {message}"


def no_such_key(key: str) -> str:
    """Why a key is refused, with the one that was probably meant."""
    meant = closest_key(key)
    if meant == key:  # of another choice
        group = key.partition(".")[0]
        return f"{key}: the chosen {group} has no such key; name a choice as well, {group}=NAME: --help lists them"
    close = f"; did you mean {meant}?" if meant else ""
    start = " A" if close else "; a"
    more = f"{start} key that the configuration does not list is written +{key}=VALUE." if "." in key else ""
    return f"{key}: no such key{close}{more}"


def closest_key(key: str) -> str | None:
    """The key that was probably meant, also without what stands before its last dot; None if there is none like it."""
    by_last_part = {full.rpartition(".")[2]: full for full in known_keys()}
    return closest(key, known_keys()) or by_last_part.get(closest(key, by_last_part) or "")


@functools.cache
def known_keys() -> list[str]:
    """Every key of the default configuration, with dots, and of groups of which nothing is chosen there."""
    config = OmegaConf.to_container(compose_config("train", NO_DEFAULT), resolve=False)
    return [key for key, _ in dotted(config) if not key.startswith("hydra")]


def dotted(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested dicts with its value: ("optimizer", {"lr": 0.9}), then ("optimizer.lr", 0.9)."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}", value
        yield from dotted(value, f"{prefix}{key}.")
