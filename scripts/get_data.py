"""Obtain and verify a data set, by default Fashion-MNIST: from its folder, the system, or torchvision's mirrors."""

import argparse
import sys
from pathlib import Path

from lenet.config import PROJECT
from lenet.data import KMNIST, MNIST, EMNISTBalanced, FashionMNIST
from lenet.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {each.choice: each for each in (FashionMNIST, MNIST, KMNIST, EMNISTBalanced)}
    parser.add_argument("choice", nargs="?", choices=known, default=FashionMNIST.choice)
    parser.add_argument("--root", type=Path, default=PROJECT / "data")
    arguments = parser.parse_args()
    data = known[arguments.choice](arguments.root)
    try:
        data.prepare_data()
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{data.title} is in {data.folder}, verified.")


if __name__ == "__main__":
    main()
