"""Speed and memory of the package, measured: ``python -m benchmarks``."""
