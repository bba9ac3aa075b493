"""Search for good settings with Optuna; the same command again goes on with the study.

    python scripts/tune.py                                   50 trials of learning rate and batch size
    python scripts/tune.py tune=adam tune.trials=20          another search space; they are files in conf/tune/
    python scripts/tune.py model=lenet_relu trainer.max_epochs=3
                                                             what all trials have in common: settings of train.py
    python scripts/tune.py tune.storage=postgresql://USER@HOST/DATABASE
                                                             one study for many workers, on many machines

A trial's measure is the best val/acc of its epochs; trials without prospects end early, and those that crash or
diverge count as failed. Ends with the best setting as a command, how much each key matters, and Optuna's plots.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from lenet import cli
from lenet.sweeps.search_space import read_search
from lenet.training.signals import saying

PROJECT = Path(__file__).resolve().parent.parent


def main() -> None:
    with cli.one_line_errors():
        words = sys.argv[1:]
        if {"-h", "--help"} & set(words):
            print(__doc__)
            return
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        search = read_search(cli.compose_config(PROJECT, "search", words))

        from lenet.sweeps.search import Study  # torch and Optuna load here, and a mistake in the settings need not wait

        common = [word for word in words if not word.lstrip("+~").startswith(("tune=", "tune."))]
        study = Study(search, lambda *more: cli.compose_settings(PROJECT, *more), common)
        try:
            study.work()
        except KeyboardInterrupt as interrupt:
            raise saying(interrupt, "the same command goes on with the study") from None
        print(study.report())


if __name__ == "__main__":
    main()
