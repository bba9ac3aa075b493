"""Obtain and verify Fashion-MNIST: from its folder, the system's copy, or torchvision's mirrors."""

import argparse
import sys
from pathlib import Path

from lenet.config import PROJECT
from lenet.data import FashionMNIST
from lenet.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=PROJECT / "data")
    data = FashionMNIST(parser.parse_args().root)
    try:
        data.prepare_data()
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"Fashion-MNIST is in {data.folder}, verified.")


if __name__ == "__main__":
    main()
