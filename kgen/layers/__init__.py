"""Layers that the families share."""

from kgen.layers.masked_dense import MaskedDense
from kgen.layers.sampling import Crop, Sampling
from kgen.layers.shifted import ShiftedConv2D
from kgen.layers.weight_norm import GatedResnet, WeightNormConv2D

__all__ = [
    "Crop",
    "GatedResnet",
    "MaskedDense",
    "Sampling",
    "ShiftedConv2D",
    "WeightNormConv2D",
]
