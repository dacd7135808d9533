"""Few-shot evaluation: tasks, scoring by likelihood, metrics, baselines and reports that can be rerun."""
