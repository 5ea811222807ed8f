"""Any other leaf module, by `torch.func`."""
