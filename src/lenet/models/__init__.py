"""LeNet as a readable list of stages, its initialisation, and the table of shapes and costs."""

from lenet.models.lenet import LeNet, init_weights_
from lenet.models.summary import LayerRow, multiply_adds, stages, table

__all__ = ["LayerRow", "LeNet", "init_weights_", "multiply_adds", "stages", "table"]
