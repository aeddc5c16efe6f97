"""What RecBole's evaluator is fed with, and its metrics by collision policy."""
