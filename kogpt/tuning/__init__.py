"""Tuning a model on a task: all weights, LoRA, P-tuning, prefix tuning."""
