"""Clipped gradient of `nn.Embedding`."""
