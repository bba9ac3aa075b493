"""Runs harmed on purpose, resumed, and compared with undisturbed ones: `python -m tests.stress --rounds 100`."""
