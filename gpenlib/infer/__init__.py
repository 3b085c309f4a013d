"""Running artefacts: runtimes, their time, the figures of what they give."""

from gpenlib.infer.artefact import RuntimeUnavailable
from gpenlib.infer.runtime import Runtime, check_support, choose_backend, open_runtime
from gpenlib.settings import BACKENDS, DEVICES, DTYPES

__all__ = [
    "BACKENDS", "DEVICES", "DTYPES", "Runtime", "RuntimeUnavailable", "check_support", "choose_backend",
    "open_runtime",
]  # fmt: skip
