"""How fast things are, compared in turn on one machine; scripts/benchmark.py runs them."""
