"""What one sees of a run: progress, throughput, TensorBoard.

Of a callback's hooks, `pl_module` is the Classifier of lenet.training, which this package does not import.
"""
