"""Clipped weight gradient of `nn.Linear` and of the transposed `Conv1D` of transformers."""
