"""The LightningModule, checkpoints, signals, and the run itself."""
