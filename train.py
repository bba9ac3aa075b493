"""Train LeNet on Fashion-MNIST: `python train.py model=lenet`; `python train.py --help` shows what can be set."""

from lenet.__main__ import start

if __name__ == "__main__":
    start()
