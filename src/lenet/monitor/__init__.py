"""What one sees of a run: progress, throughput, TensorBoard."""
