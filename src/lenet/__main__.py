"""`lenet-train`, `python -m lenet` and train.py: Hydra composes conf/, lenet.training.run runs it."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from lenet import cli
from lenet.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(config: DictConfig) -> float | None:
    with cli.one_line_errors():
        from lenet.training.run import train  # here, because --help and a misspelt key need not wait for torch

        return train(config)


def start() -> None:
    cli.start(main)


if __name__ == "__main__":
    start()
