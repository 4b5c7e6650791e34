"""The loop, optimizers, checkpoints, logs."""
