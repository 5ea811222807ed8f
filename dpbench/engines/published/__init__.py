"""What published code really does, faults included, for rows that are marked so. Nothing here is private; nothing offers it."""
