"""One thread for all tests: their models are tiny, and two threads that wait for each other lose badly under load."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
