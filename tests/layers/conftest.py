import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test of the layers starts from the same random numbers."""
    torch.manual_seed(0)
