"""Gaussian noise added on the device."""
