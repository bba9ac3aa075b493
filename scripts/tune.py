"""Search for good settings with Optuna; the same command again goes on with the study.

    python scripts/tune.py                                   50 trials of learning rate and batch size
    python scripts/tune.py tune=adam tune.trials=20          another search space; they are files in conf/tune/
    python scripts/tune.py model=lenet_relu trainer.max_epochs=3
                                                             what all trials have in common: settings of train.py
    python scripts/tune.py tune.storage=postgresql://USER@HOST/DATABASE
                                                             one study for many workers, on many machines

A trial's measure is the best val/acc of its epochs. Trials without prospects end early; trials that crash or diverge
count as failed. At the end: the best setting as a command, the importance of each key, and Optuna's plots.
"""

from __future__ import annotations

import logging
import sys

from lenet import cli
from lenet.config import compose_config
from lenet.signals import raising


def main() -> None:
    with cli.one_line_errors(), raising():
        words = sys.argv[1:]
        if {"-h", "--help"} & set(words):
            print(__doc__)
            return
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        config = compose_config("search", words)

        from lenet.sweeps.search import Study  # torch and Optuna load here; a mistyped key need not wait for that

        common = [word for word in words if not word.lstrip("+~").startswith(("tune=", "tune."))]
        study = Study(config, common)
        study.work()
        print(study.report())


if __name__ == "__main__":
    main()
