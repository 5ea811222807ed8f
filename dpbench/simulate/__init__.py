"""The cost of a step without timing it: bytes of live tensors, counted under a dispatch mode."""
