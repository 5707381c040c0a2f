"""Backups, pictures, distances, progress and health while `fit` runs, alike on every
backend."""

from kgen.callbacks.backup import BackupAndRestore
from kgen.callbacks.health import CollapseGuard, KLWarmUp, SampleDistances, StopOnNaN
from kgen.callbacks.pictures import (
    ReconstructionGrid,
    SampleGrid,
    image_grid,
    save_completions,
    save_grid,
    save_reconstructions,
)
from kgen.callbacks.progress import CutEpoch, Progress, SetEpoch

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
