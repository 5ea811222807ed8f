"""The fallback for any other leaf module, by `torch.func`."""
