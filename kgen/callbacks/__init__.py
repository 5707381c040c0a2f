"""Pictures, distances, progress and health while `fit` runs, alike on every backend."""

from kgen.callbacks.health import CollapseGuard, SampleDistances
from kgen.callbacks.pictures import (
    ReconstructionGrid,
    SampleGrid,
    image_grid,
    save_completions,
    save_grid,
    save_reconstructions,
)
from kgen.callbacks.progress import Progress, SetEpoch

__all__ = [
    "CollapseGuard",
    "Progress",
    "ReconstructionGrid",
    "SampleDistances",
    "SampleGrid",
    "SetEpoch",
    "image_grid",
    "save_completions",
    "save_grid",
    "save_reconstructions",
]
