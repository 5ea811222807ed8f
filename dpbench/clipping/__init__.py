"""What is bounded: scope x function. One file each; how noise follows from the bounds is in `dpbench.mechanism`."""
