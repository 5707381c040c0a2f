"""Data sets of integer images for kgen: one call, `load`.

Images are integers in 0..levels-1, uint8, of shape (N, H, W, C).
"""

from kgen.data.batches import Batches
from kgen.data.images import quantize
from kgen.data.splits import Splits, load

__all__ = ["Batches", "Splits", "load", "quantize"]
