"""The families, a file each."""

from kgen.models.autoregressive import Autoregressive
from kgen.models.base import GenerativeModel
from kgen.models.fvbn import FVBN
from kgen.models.gan import GAN
from kgen.models.gated_pixel_cnn import GatedPixelCNN
from kgen.models.iwae import IWAE
from kgen.models.made import MADE
from kgen.models.nade import NADE
from kgen.models.pixel_cnn import PixelCNN
from kgen.models.pixel_cnn_pp import PixelCNNPlusPlus
from kgen.models.pixel_rnn import DiagonalBiLSTM, RowLSTM
from kgen.models.vae import VAE

__all__ = [
    "Autoregressive",
    "DiagonalBiLSTM",
    "FVBN",
    "GAN",
    "GatedPixelCNN",
    "GenerativeModel",
    "IWAE",
    "MADE",
    "NADE",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "RowLSTM",
    "VAE",
]
