"""Fashion-MNIST: 60,000 training and 10,000 test images of clothes, in ten classes.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms" (2017).
"""

from pathlib import Path
from typing import ClassVar

from torchvision import datasets

from lenet.data.idx import IdxDataModule


class FashionMNIST(IdxDataModule):
    """Fashion-MNIST in its four files; see IdxDataModule for the arguments."""

    title, choice = "FashionMNIST", "fashion_mnist"
    source = "Fashion-MNIST by Zalando Research (Xiao, Rasul and Vollgraf, 2017); MIT licence."
    mirrors = tuple(datasets.FashionMNIST.mirrors)
    archives: ClassVar = {file.removesuffix(".gz"): md5 for file, md5 in datasets.FashionMNIST.resources}
    files: ClassVar = {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
    system_folder = Path("/usr/share/datasets/fashion-mnist")
    hint = "install Debian's package dataset-fashion-mnist, or "
    class_names = tuple(datasets.FashionMNIST.classes)
