"""What pretraining and tuning share: the loop, optimisers, schedule, checkpoints and report."""
