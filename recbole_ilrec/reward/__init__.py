"""Collaborative rewards of tokens (Eq. 10)."""
