"""Adapters of peers to the contract of engines. The peers' code does the work; names and units are translated here, once."""
