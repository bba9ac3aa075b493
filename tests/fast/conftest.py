"""The kernels compiled for registers of every width."""

from ctypes import CDLL

import pytest

from lenet.fast.kernels import compiler, lanes


@pytest.fixture(scope="session", params=["own", 4], ids="{} lanes".format)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    """This machine's, and the smallest: registers of other widths take other paths through the code."""
    if request.param == "own":
        return compiler.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, f"-DLANES={request.param}", "-O1"))
        patch.setattr(compiler, "CACHE", tmp_path_factory.mktemp("kernels"))
        return compiler.load.__wrapped__()


@pytest.fixture
def width(library: CDLL, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many images lie side by side in the kernels of this test."""
    monkeypatch.setattr("lenet.fast.kernels.load", lambda: library)
    return lanes()
