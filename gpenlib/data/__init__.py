"""Data: where faces come from, how a task degrades them, packs on disk, and the split.

Colour statistics are in :mod:`gpenlib.data.statistics`, which is slower to load.
"""

from gpenlib.data.align import AlignError, Landmarks, align
from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.packs import Pack, check_packs, read_pack, unpack, write_pack
from gpenlib.data.sources import DataError, FolderSource, ImageSource, combined_digest, open_folder
from gpenlib.data.splits import Split, Subset, split
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
