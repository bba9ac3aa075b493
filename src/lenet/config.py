"""What a configuration may say: every key, its type and its range, and the classes it may name.

conf/ holds the values, this file the rules; lenet.trust has those for Hydra's own section. A class that no `_target_`
below lists is not instantiated from a configuration, whoever wrote it. The rules need no torch, so that a mistake is
answered at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lenet.errors import UserError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
AnySection = TypeVar("AnySection", bound="Section")


class Section(BaseModel):
    """A mapping in the configuration: no key beyond those declared, no conversion between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Factory(Section):
    """A class with some arguments bound, called later with the rest."""

    partial: Literal[True] = Field(alias="_partial_")


Algorithm = Literal["loops", "taps", "im2col", "kernel_matrix", "fft"]
"""As in lenet.layers.functional.ALGORITHMS, which would need torch."""


class BuiltinConvolution(Factory):
    target: Literal["torch.nn.Conv2d"] = Field(alias="_target_")


class BuiltinPooling(Factory):
    target: Literal["torch.nn.AvgPool2d", "torch.nn.MaxPool2d"] = Field(alias="_target_")


class OwnConvolution(Factory):
    target: Literal["lenet.layers.Conv2d"] = Field(alias="_target_")
    algorithm: Algorithm


class OwnPooling(Factory):
    target: Literal["lenet.layers.AvgPool2d", "lenet.layers.MaxPool2d"] = Field(alias="_target_")
    algorithm: Algorithm


Convolution = Annotated[BuiltinConvolution | OwnConvolution, Field(discriminator="target")]
Pooling = Annotated[BuiltinPooling | OwnPooling, Field(discriminator="target")]


class Activation(Factory):
    target: Literal["torch.nn.Sigmoid", "torch.nn.ReLU", "torch.nn.ELU", "torch.nn.GELU"] = Field(alias="_target_")


class Normalization(Factory):
    target: Literal["torch.nn.BatchNorm2d"] = Field(alias="_target_")
    momentum: Annotated[float, Field(gt=0, le=1)]


class HiddenNormalization(Factory):
    target: Literal["torch.nn.BatchNorm1d"] = Field(alias="_target_")
    momentum: Annotated[float, Field(gt=0, le=1)]


class Layers(Section):
    algorithm: Algorithm | None = None  # torch's own layers have none
    conv: Convolution
    avg_pool: Pooling
    max_pool: Pooling


class LeNet(Section):
    target: Literal["lenet.models.lenet.LeNet"] = Field(alias="_target_")
    conv: Convolution
    pool: Pooling
    activation: Activation


class NormalizedLeNet(Section):
    target: Literal["lenet.models.lenet.NormalizedLeNet"] = Field(alias="_target_")
    conv: Convolution
    pool: Pooling
    activation: Activation
    norm: Normalization
    hidden_norm: HiddenNormalization | None


class SGD(Factory):
    target: Literal["torch.optim.SGD"] = Field(alias="_target_")
    lr: Positive
    momentum: Fraction
    weight_decay: NonNegative
    nesterov: bool
    fused: bool

    @model_validator(mode="after")
    def nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true: needs optimizer.momentum greater than 0")
        return self


class AdamArguments(Factory):
    lr: Positive
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative
    fused: bool


class Adam(AdamArguments):
    target: Literal["torch.optim.Adam"] = Field(alias="_target_")


class AdamW(AdamArguments):
    target: Literal["torch.optim.AdamW"] = Field(alias="_target_")


class Cosine(Factory):
    target: Literal["lenet.training.schedules.cosine"] = Field(alias="_target_")
    final_lr: NonNegative


class OneCycle(Factory):
    target: Literal["lenet.training.schedules.onecycle"] = Field(alias="_target_")
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)]
    shape: Literal["cos", "linear"]


class Device(Section):
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count
    num_nodes: Count
    strategy: Literal["auto", "ddp"]

    @property
    def total(self) -> int:
        """Devices on all machines."""
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def several_machines_need_ddp(self) -> Self:
        if self.num_nodes > 1 and self.strategy != "ddp":
            raise ValueError(f"num_nodes={self.num_nodes}: several machines need device=ddp")
        return self


class FashionMNIST(Section):
    target: Literal["lenet.data.module.FashionMNISTDataModule"] = Field(alias="_target_")
    root: Annotated[str, Field(min_length=1)]
    batch_size: Count
    val_size: Annotated[int, Field(ge=0, le=59_999)]
    mirrors: list[Annotated[str, Field(pattern=r"^https?://")]] | None


class Synthetic(Section):
    target: Literal["lenet.data.module.SyntheticDataModule"] = Field(alias="_target_")
    batch_size: Count
    val_size: Annotated[int, Field(ge=0)]
    train_size: Annotated[int, Field(ge=1, le=1_000_000)]
    test_size: Annotated[int, Field(ge=1, le=1_000_000)]

    @model_validator(mode="after")
    def some_images_are_trained_on(self) -> Self:
        if self.val_size >= self.train_size:
            raise ValueError(f"val_size={self.val_size}: should be less than data.train_size={self.train_size}")
        return self


TRAINER_ARGUMENTS_SET_ELSEWHERE = {
    "accelerator": "device=cpu, device=gpu or device.accelerator",
    "devices": "device.devices",
    "num_nodes": "device.num_nodes",
    "strategy": "device=ddp or device.strategy",
    "logger": "the program itself: every run logs to TensorBoard in its folder",
    "callbacks": "the program itself",
    "precision": "precision=float32 or precision=bf16",
    "plugins": "the program itself",
    "default_root_dir": "hydra.run.dir",
    "enable_checkpointing": "the program itself: every run keeps its last and its best weights",
    "overfit_batches": "another argument: +trainer.limit_train_batches",
    "accumulate_grad_batches": "a larger data.batch_size: LeNet's batches need little memory",
    "deterministic": "deterministic",
    "use_distributed_sampler": "the data module: each example goes to exactly one device",
}


class Trainer(Section):
    """Three arguments of Lightning's Trainer with our defaults; the others pass through."""

    model_config = ConfigDict(extra="allow")
    max_epochs: Count
    max_steps: Annotated[int, Field(ge=-1)]  # -1 is Lightning's word for no limit
    log_every_n_steps: Annotated[int, Field(ge=1, le=2**31 - 1)]

    @model_validator(mode="after")
    def limits_leave_something_to_do(self) -> Self:
        if self.max_steps == 0:
            raise ValueError("max_steps=0: should be at least 1, or -1 for no limit")
        limit = (self.model_extra or {}).get("gradient_clip_val")
        if isinstance(limit, int | float) and limit <= 0:
            raise ValueError(f"gradient_clip_val={limit}: should be greater than 0")
        every = (self.model_extra or {}).get("check_val_every_n_epoch")
        if isinstance(every, int) and every < 1:
            raise ValueError(f"check_val_every_n_epoch={every}: should be at least 1, or null")
        return self

    @model_validator(mode="after")
    def arguments_have_one_owner(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in TRAINER_ARGUMENTS_SET_ELSEWHERE:
                raise ValueError(f"{name}={value}: is set by {TRAINER_ARGUMENTS_SET_ELSEWHERE[name]}")
            if isinstance(value, dict) and name != "max_time":
                # Nothing makes an object of it, and the Trainer would take it for one.
                raise ValueError(f"{name}={value}: should be a plain value; objects cannot be named here")
        return self


class CheckpointSettings(Section):
    every_seconds: NonNegative


class SweepSettings(Section):
    resume: Annotated[str, Field(min_length=1)] | None


class Settings(Section):
    """One run's configuration, checked."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    test_every_epoch: bool
    fuse: bool
    dashboard: Literal["full", "minimal"]
    precision: Literal["float32", "bf16"]
    layers: Layers
    model: Annotated[LeNet | NormalizedLeNet, Field(discriminator="target")]
    optimizer: Annotated[SGD | Adam | AdamW, Field(discriminator="target")]
    scheduler: Annotated[Cosine | OneCycle, Field(discriminator="target")] | None
    device: Device
    data: Annotated[FashionMNIST | Synthetic, Field(discriminator="target")]
    deterministic: bool
    trainer: Trainer
    checkpoint: CheckpointSettings
    sweep: SweepSettings
    resume: Annotated[str, Field(min_length=1)] | None

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest training batch."""
        data = self.data
        images = (60_000 if isinstance(data, FashionMNIST) else data.train_size) - data.val_size
        return images % data.batch_size or data.batch_size

    @model_validator(mode="after")
    def batch_normalisation_has_two_images(self) -> Self:
        normalises = isinstance(self.model, NormalizedLeNet) and self.model.hidden_norm is not None
        if normalises and self.smallest_batch // self.device.total < 2:
            raise ValueError(
                f"data.batch_size={self.data.batch_size}: leaves a batch of {self.smallest_batch} for"
                f" {self.device.total} device(s), and batch normalisation needs two images on each; use another size"
            )
        return self

    @property
    def plain(self) -> dict[str, Any]:
        """What makes a run, as plain dicts, lists and scalars; not how it was started."""
        plain: dict[str, Any] = json.loads(json.dumps(self.model_dump(by_alias=True, exclude={"resume"})))
        plain["sweep"]["resume"] = None
        return plain

    def section(self, name: str) -> dict[str, Any]:
        """The section as plain dicts and scalars, `_target_` and all, for `hydra.utils.instantiate`."""
        plain: dict[str, Any] = getattr(self, name).model_dump(by_alias=True)
        return plain


def read_settings(config: DictConfig) -> Settings:
    """Resolve a composed configuration and check it against the rules.

    Raises:
        UserError: names the first key that breaks a rule, its value, and the rule.
        OmegaConfBaseException: an interpolation does not resolve.
    """
    # Hydra's own section has keys that hold nothing before a job starts.
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", "tune")])
    return validated(Settings, OmegaConf.to_container(ours, resolve=True))


def validated(rules: type[AnySection], values: object, key: str = "") -> AnySection:
    """The values, checked.

    Args:
        rules: what they should be.
        values: plain dicts, lists and scalars.
        key: where they stand in the configuration.

    Raises:
        UserError: names the first key that breaks a rule, its value, and the rule.
    """
    try:
        return rules.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_mistake(error, key)) from None


def _first_mistake(error: ValidationError, section: str) -> str:
    # A mistake in one section shows again in those that interpolate it (model takes its factories from layers);
    # the first is the user's own.
    mistake = error.errors(include_url=False)[0]
    # A discriminated union adds the class it chose to the path; the user's key does not have it.
    parts = [str(part) for part in mistake["loc"] if not str(part).startswith(("torch.", "lenet."))]
    key = ".".join([section] * bool(section) + parts)
    message = mistake["msg"][:1].lower() + mistake["msg"][1:]
    match mistake["type"]:
        case "value_error":  # one of the validators above, which name the key themselves
            return f"{key}.{mistake['ctx']['error']}" if key else str(mistake["ctx"]["error"])
        case "extra_forbidden":
            return no_such_key(key)
        case "missing":
            return f"{key}: is missing from the configuration"
        case "union_tag_invalid":
            allowed = mistake["ctx"]["expected_tags"].replace("'", "")
            return f"{key}._target_={mistake['ctx']['tag']}: not allowed here; choose from {allowed}"
        case "union_tag_not_found" | "model_type" | "model_attributes_type":
            return f"{key}={mistake['input']}: should be a mapping, as in the files below conf/"
        case _:
            return f"{key}={_as_written(mistake['input'])}: {message}"


def _as_written(value: object) -> object:
    """A number in quotes keeps them: without, nobody would see what is wrong with it."""
    return repr(value) if isinstance(value, str) and value.strip("+-.eE0123456789") == "" else value


def no_such_key(key: str) -> str:
    """Why a key is refused, with the one that was probably meant."""
    known = known_keys()
    section, _, name = key.partition(".")
    if key in known:
        return f"{key}: belongs to another choice of {section} than the one made; see conf/{section}/"
    if section == "trainer" and name:
        close = did_you_mean(key, known)
        return f"{key}: no such key{close}; other arguments of Lightning's Trainer are written +{key}=VALUE"
    meant = closest_key(key)
    return f"{key}: no such key" + (f"; did you mean {meant}?" if meant else "")


def closest_key(key: str) -> str | None:
    """The key that was probably meant, also without what stands before its last dot; None if there is none like it."""
    known = known_keys()
    by_last_part = {full.rpartition(".")[2]: full for full in known}
    return _closest(key, known) or by_last_part.get(_closest(key, by_last_part) or "")


def known_keys() -> list[str]:
    """Every key of the configuration, with dots: `optimizer.lr` and the like."""
    return sorted(set(_keys(Settings)))


def _keys(section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = field.alias or name
        yield key
        for inner in _sections_in(field.annotation):
            yield from (f"{key}.{rest}" for rest in _keys(inner))


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the closest of the known words, or nothing if none is close."""
    close = _closest(word, known)
    return f"; did you mean {close}?" if close else ""


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)
