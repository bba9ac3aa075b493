"""LeNet as a readable list of stages, its initialisation, and the table of shapes and costs."""
