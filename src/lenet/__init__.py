"""LeNet on Fashion-MNIST: the model, its layers, its data and its training.

Importing the package imports nothing else, so that the command line can answer before torch is loaded.
"""
