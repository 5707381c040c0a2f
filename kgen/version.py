"""The version of kgen."""

__version__ = "0.1.0"
