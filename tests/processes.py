"""Processes of tests, forked from a server that has imported already what they need.

A process has one such server, whoever starts it first, and so there is one list of what is preloaded. A
module of it that is not found would be left out without a word.
"""

import multiprocessing
from pathlib import Path

_late = (  # imported by others only where they need it
    "lightning_fabric.loggers.tensorboard", "onnxscript.optimizer", "openvino", "skimage.data", "skimage.io",
)  # fmt: skip
_bad_inputs = (Path(__file__).parent / "bad_inputs").glob("test_*.py")
PRELOADED = (
    "gpenlib.run",
    "gpenlib.photos.folder",
    *(f"tests.bad_inputs.{p.stem}" for p in _bad_inputs),
    *_late,
)

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(list(PRELOADED))
