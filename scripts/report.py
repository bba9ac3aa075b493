"""Write the report of a run or a sweep: one HTML page that opens without a network.

    python scripts/report.py outputs/DATE/TIME
    python scripts/report.py outputs/multirun/DATE/TIME

The page is report.html in that folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lenet.cli import one_line_errors
from lenet.reports.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN_OR_SWEEP", help="the folder of a run or of a sweep")
    with one_line_errors():
        print(write_report(parser.parse_args().folder))


if __name__ == "__main__":
    main()
