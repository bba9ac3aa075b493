"""Data sets as Lightning data modules: images held in memory as bytes, and batches of them.

A new data set is one file with a subclass of ImageDataModule (`load` and `class_names`), and one file in conf/data.
"""

from lenet.data.fashion_mnist import FashionMNIST
from lenet.data.image_folder import ImageFolder
from lenet.data.mnist import KMNIST, MNIST, EMNISTBalanced
from lenet.data.module import Batch, Block, ImageDataModule, Images
from lenet.data.synthetic import Synthetic

__all__ = ["KMNIST", "MNIST", "Batch", "Block", "EMNISTBalanced", "FashionMNIST", "ImageDataModule", "ImageFolder"]
__all__ += ["Images", "Synthetic"]
