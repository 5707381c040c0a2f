"""The families, a file each."""

from kgen.models.base import GenerativeModel
from kgen.models.vae import VAE

__all__ = ["GenerativeModel", "VAE"]
