"""Table to text: a language model learns to put a table's fields into words."""
