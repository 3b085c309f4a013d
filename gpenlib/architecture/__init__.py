"""What GPEN is: operators, generator, discriminator, checkpoints, cost."""

from gpenlib.architecture.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_discriminator,
    load_generator,
    read_notes,
    save_checkpoint,
)
from gpenlib.architecture.model import Discriminator, Generator, Gpen, GpenConfig

__all__ = [
    "CheckpointError",
    "Discriminator",
    "Generator",
    "Gpen",
    "GpenConfig",
    "load_checkpoint",
    "load_discriminator",
    "load_generator",
    "read_notes",
    "save_checkpoint",
]
