"""Backups, pictures, distances, progress and health while `fit` runs, alike on every
backend."""

from kgen.callbacks.backup import BackupAndRestore
from kgen.callbacks.health import CollapseGuard, KLWarmUp, SampleDistances, StopOnNaN
from kgen.callbacks.pictures import (
    ReconstructionGrid,
    SampleGrid,
    save_completions,
    save_reconstructions,
)
from kgen.callbacks.progress import CutEpoch, Progress, SetEpoch
from kgen.pictures import image_grid, save_grid

__all__ = [
    "BackupAndRestore",
    "CollapseGuard",
    "CutEpoch",
    "KLWarmUp",
    "Progress",
    "ReconstructionGrid",
    "SampleDistances",
    "SampleGrid",
    "SetEpoch",
    "StopOnNaN",
    "image_grid",
    "save_completions",
    "save_grid",
    "save_reconstructions",
]
