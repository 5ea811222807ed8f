"""How good a generated text is, beside what people wrote for the same input."""
