"""ILRec and its baselines as RecBole models: self-hard negatives from the intermediate layers of a language model."""

__version__ = "0.1.0"
