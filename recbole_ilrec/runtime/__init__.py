"""The process a run lives in: libraries, device, signals, other processes, what is saved where."""
