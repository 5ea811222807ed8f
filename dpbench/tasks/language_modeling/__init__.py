"""Language modelling: pre-training on blocks of text, and the public models that other tasks start from."""
