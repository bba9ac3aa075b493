"""Compare the runs in a folder, also while a sweep runs: a row for each setting, over its seeds, best first.

    python scripts/leaderboard.py outputs/multirun/DATE/TIME     a sweep
    python scripts/leaderboard.py outputs/DATE                   all runs of a day

Writes leaderboard.csv and leaderboard.png into that folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors
from lenet.sweeps.leaderboard import read_runs, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a sweep, or any other with runs in it")
    with one_line_errors():
        folder = parser.parse_args().folder
        print(show(folder, read_runs(folder)))


if __name__ == "__main__":
    main()
