"""Clipped gradient of `nn.LayerNorm`."""
