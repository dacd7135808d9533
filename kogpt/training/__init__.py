"""What pretraining and tuning share: the loop, optimizers, schedule, checkpoints and report."""
