"""What people run and see.

datasets    data for the demo, the examples and the benchmarks
progress    how far a run is, on a terminal or in a file
"""

from .datasets import Dataset, digits, minibatches, mnist, read_idx
from .progress import Track

__all__ = ["Dataset", "Track", "digits", "minibatches", "mnist", "read_idx"]
