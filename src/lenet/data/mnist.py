"""Handwritten characters in Fashion-MNIST's format: MNIST, Kuzushiji-MNIST, and EMNIST's balanced classes.

Mirrors and checksums are torchvision's. MNIST's SHA-256 are those that many projects publish alike.
"""

import gzip
import zipfile
from typing import ClassVar

from torchvision import datasets

from lenet.data.idx import IdxDataModule, md5_of
from lenet.data.module import Images
from lenet.errors import UserError
from lenet.files import write_whole


class MNIST(IdxDataModule):
    """60,000 and 10,000 digits; see IdxDataModule for the arguments."""

    title, choice = "MNIST", "mnist"
    source = "MNIST (LeCun, Cortes and Burges, 1998); Creative Commons Attribution-ShareAlike 3.0."
    mirrors = tuple(datasets.MNIST.mirrors)
    archives: ClassVar = {file.removesuffix(".gz"): md5 for file, md5 in datasets.MNIST.resources}
    files: ClassVar = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
    class_names = tuple("0123456789")


class KMNIST(IdxDataModule):
    """60,000 and 10,000 characters of old Japanese, in ten classes; see IdxDataModule for the arguments."""

    title, choice = "KMNIST", "kmnist"
    source = "KMNIST (Clanuwat et al., 2018); Creative Commons Attribution-ShareAlike 4.0."
    mirrors = tuple(datasets.KMNIST.mirrors)
    archives: ClassVar = {file.removesuffix(".gz"): md5 for file, md5 in datasets.KMNIST.resources}
    class_names = tuple(datasets.KMNIST.classes)


class EMNISTBalanced(IdxDataModule):
    """112,800 and 18,800 digits and letters, in 47 classes; see IdxDataModule for the arguments.

    The only archive is one of half a gigabyte with all of EMNIST, which stays in the folder as gzip.zip. Its images are
    stored with rows and columns exchanged; here they are upright.
    """

    title, choice = "EMNIST", "emnist_balanced"
    source = "EMNIST Balanced (Cohen, Afshar, Tapson and van Schaik, 2017), from NIST's Special Database 19."
    mirrors = (datasets.EMNIST.url.rpartition("/")[0],)
    md5 = datasets.EMNIST.md5  # of gzip.zip
    archives: ClassVar = {
        f"emnist-balanced-{split}-{kind}-ubyte": None
        for split in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    }
    class_names = tuple(datasets.EMNIST.classes_split_dict["balanced"])
    timeout_seconds = 600.0

    def load(self) -> tuple[Images, Images]:
        train, test = super().load()
        return train._replace(images=train.images.mT.contiguous()), test._replace(images=test.images.mT.contiguous())

    def _from_a_source(self, name: str) -> bytes:
        path = self.folder / "gzip.zip"
        if not path.exists():
            write_whole(
                path, self._first(self.mirrors, path.name, lambda zip: zip if md5_of(zip) == self.md5 else None)
            )
        try:
            with zipfile.ZipFile(path) as archive:
                return gzip.decompress(archive.read(f"gzip/{name}.gz"))
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{path}: is not EMNIST's archive, or damaged ({error}); move it away") from None
