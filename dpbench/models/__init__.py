"""Models: name -> source -> module and tokenizer."""
