"""What a search may try: the section `tune` of conf/search.yaml. Its rules need neither torch nor Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from omegaconf import DictConfig, OmegaConf
from pydantic import Discriminator, Field, Tag, model_validator

from lenet import preflight
from lenet.config import Count, Section, known_keys, no_such_key, read_settings, validated
from lenet.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import Trial


class Range(Section):
    """Numbers from `low` to `high`."""

    low: float | int
    high: float | int
    log: bool = False

    @model_validator(mode="after")
    def low_is_below_high(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low: should be less than high, and greater than 0 with log=true")
        return self

    def suggest(self, trial: Trial, key: str) -> float | int:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


class Choices(Section):
    """One of several values."""

    choices: list[str | int | float | bool] = Field(min_length=1)

    def suggest(self, trial: Trial, key: str) -> str | int | float | bool | None:
        return trial.suggest_categorical(key, self.choices)


def _kind(part: object) -> str:
    is_choices = isinstance(part, Choices) or (isinstance(part, dict) and "choices" in part)
    return "Choices" if is_choices else "Range"


Dimension = Annotated[Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind)]


class Search(Section):
    """How to search: the section `tune` of conf/search.yaml."""

    name: str = Field(pattern=r"^[\w-]+$")
    space: dict[str, Dimension] = Field(min_length=1)
    trials: Count
    folder: str = Field(min_length=1)
    storage: str = Field(pattern=r"^\w+(\+\w+)?://")
    seed: int
    startup_trials: int = Field(ge=0)
    warmup_epochs: int = Field(ge=0)


def read_search(config: DictConfig) -> Search:
    """The section `tune` of a configuration, checked, together with the settings that all trials have in common.

    Raises:
        UserError: names the key that is wrong.
    """
    search = validated(Search, OmegaConf.to_container(config.tune, resolve=True), "tune")
    settings = read_settings(config)
    preflight.check(settings)
    if settings.data.val_size == 0 or settings.test_every_epoch:
        raise UserError("data.val_size=0: a search needs validation images, and no look at the test images")
    preflight.check_one_device(settings, "a trial runs on one device; start more workers")
    known = set(known_keys())
    for key in search.space:
        if key not in known:
            raise UserError(f"tune.space: {no_such_key(key)}")
    return search
