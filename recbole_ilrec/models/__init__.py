"""The language models wired together from the parts of the method."""
