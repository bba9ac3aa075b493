"""Data modules: images held in memory as bytes, and batches of them."""
