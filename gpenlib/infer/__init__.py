"""Running artefacts: runtimes, the streaming pipeline, latency."""

from gpenlib.infer.performance import fastest_backend
from gpenlib.infer.runtime import (
    BACKENDS,
    DEVICES,
    DTYPES,
    Runtime,
    RuntimeUnavailable,
    check_support,
    choose_backend,
    open_runtime,
)

__all__ = [
    "BACKENDS",
    "DEVICES",
    "DTYPES",
    "Runtime",
    "RuntimeUnavailable",
    "check_support",
    "choose_backend",
    "fastest_backend",
    "open_runtime",
]
