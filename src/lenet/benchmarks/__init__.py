"""Benchmarks of training and of the layers; scripts/benchmark.py runs them."""
