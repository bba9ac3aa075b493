"""Obtain and verify Fashion-MNIST: from its folder, the system's copy, or torchvision's mirrors."""

import argparse
import sys
from pathlib import Path

from lenet.data import fashion_mnist
from lenet.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent / "data")
    root = parser.parse_args().root.absolute()
    try:
        fashion_mnist.obtain(root)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"Fashion-MNIST is in {fashion_mnist.raw_folder(root)}, verified.")


if __name__ == "__main__":
    main()
