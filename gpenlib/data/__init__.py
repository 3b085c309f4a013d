"""Data: where faces come from, how a task degrades them, packs on disk, and the split.

Colour statistics are in :mod:`gpenlib.data.pairs`, which is slower to load.
"""

from gpenlib.data.faces import (
    AlignError,
    DataError,
    EmbeddedSource,
    FolderSource,
    ImageSource,
    Landmarks,
    Split,
    Subset,
    align,
    combined_digest,
    open_folder,
    split,
)
from gpenlib.data.pairs import Pack, check_packs, read_pack, unpack, write_pack
from gpenlib.data.tasks import TASKS, make_pair, register_task

__all__ = [
    "TASKS",
    "AlignError",
    "DataError",
    "EmbeddedSource",
    "FolderSource",
    "ImageSource",
    "Landmarks",
    "Pack",
    "Split",
    "Subset",
    "align",
    "check_packs",
    "combined_digest",
    "make_pair",
    "open_folder",
    "read_pack",
    "register_task",
    "split",
    "unpack",
    "write_pack",
]
