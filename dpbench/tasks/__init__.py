"""Tasks: what is learned. Each has a `config` without torch, and a `task` with model, data, losses and evaluation."""
