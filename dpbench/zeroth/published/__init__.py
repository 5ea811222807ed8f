"""What papers' published zeroth-order code does, faults included, for rows marked as published alone."""
