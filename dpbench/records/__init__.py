"""Records, the result files of runs: written atomically; every read checks their meaning and their digest."""
