"""LeNet as a readable list of stages, its initialisation, and the table of shapes and costs."""

from lenet.models.lenet import LeNet, xavier_uniform_
from lenet.models.summary import LayerRow, multiply_adds, stages, table

__all__ = ["LayerRow", "LeNet", "multiply_adds", "stages", "table", "xavier_uniform_"]
