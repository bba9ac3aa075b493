"""Show a sweep's results at any time, also while it runs: a row for each setting, over its seeds, best first.

    python scripts/leaderboard.py outputs/multirun/DATE/TIME

Writes leaderboard.csv and leaderboard.png into that folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors
from lenet.sweeps import sweep
from lenet.sweeps.leaderboard import Leaderboard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="the folder of a sweep")
    with one_line_errors():
        board = Leaderboard(sweep.read(parser.parse_args().sweep, ""))
        print(board)
        print(board.save())


if __name__ == "__main__":
    main()
