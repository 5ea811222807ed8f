"""Convolution with a standardised weight."""
