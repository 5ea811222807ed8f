"""dpbench: the published tables of five differentially private deep-learning papers, regenerated."""

__version__ = "0.1.0"
