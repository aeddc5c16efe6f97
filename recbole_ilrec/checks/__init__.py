"""What may be wrong with data, split, identifiers and prompts, and how two runs differ: counted, never guessed.

Knows arrays of ids and times, and texts; never files, models, tokens or RecBole. Needs NumPy and SciPy only.
"""
