"""Peers behind the same contract. Their own code does the work; names and units are translated here, once."""
