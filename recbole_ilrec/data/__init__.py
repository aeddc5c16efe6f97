"""Interactions as RecBole's dataset and loaders, and the texts and candidates that belong to them."""
