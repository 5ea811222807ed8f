"""What a step costs without timing it: bytes of live tensors, counted under a dispatch mode."""
