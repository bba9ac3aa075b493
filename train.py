"""Train LeNet on Fashion-MNIST: `python train.py model=lenet`; `python train.py --help` shows what can be set."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from lenet import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    with cli.one_line_errors():
        from lenet.training.run import train  # here, because --help and a misspelt key need not wait for torch

        return train(config)


if __name__ == "__main__":
    cli.start(main)
