"""One run from its data to its record and its exported folder."""
