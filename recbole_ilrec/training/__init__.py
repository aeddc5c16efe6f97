"""Training and validation of the language models."""
