"""Data: where faces come from, how a task degrades them, pairs made when asked for, packs for the vendor."""

from gpenlib.data.faces import DataError, Faces, embedded_faces, open_faces, open_folder, pair_up
from gpenlib.data.pairs import Pack, Pairs, check_packs, read_pack, unpack, write_pack
from gpenlib.data.tasks import TASKS, make_pair, register_task

__all__ = [
    "TASKS",
    "DataError",
    "Faces",
    "Pack",
    "Pairs",
    "check_packs",
    "embedded_faces",
    "make_pair",
    "open_faces",
    "open_folder",
    "pair_up",
    "read_pack",
    "register_task",
    "unpack",
    "write_pack",
]
