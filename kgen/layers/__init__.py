"""Layers that the families share."""

from kgen.layers.causal_conv import ShiftedConv2D
from kgen.layers.masked_dense import MaskedDense
from kgen.layers.pixel_lstm import DiagonalBiLSTMLayer, RowLSTMLayer
from kgen.layers.sampling import Crop, Sampling
from kgen.layers.spectral_norm import SpectralNorm
from kgen.layers.weight_norm import GatedResnet, WeightNormConv2D

__all__ = [
    "Crop",
    "DiagonalBiLSTMLayer",
    "GatedResnet",
    "MaskedDense",
    "RowLSTMLayer",
    "Sampling",
    "ShiftedConv2D",
    "SpectralNorm",
    "WeightNormConv2D",
]
