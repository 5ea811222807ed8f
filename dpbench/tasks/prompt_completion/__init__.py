"""Prompt completion: a language model learns how prompts go on, by label words or with answers that it writes."""
