"""What every stage does: return the standing manifest, or build the folder anew."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpenlib.run import valid_manifest, write_manifest
from gpenlib.stage_settings import RunSettings

log = logging.getLogger("gpenlib.stages")


def stage(
    settings: RunSettings,
    name: str,
    described: Mapping[str, Any],
    inputs: Mapping[str, str],
    build: Callable[[Path], Mapping[str, Any]],
    keep: bool = False,
) -> dict[str, Any]:
    """Return the standing manifest of a stage, or build it; adds ``folder`` and ``built``.

    With ``keep`` the build starts from what lies in the folder (a checkpoint), otherwise from an empty one.
    """
    folder = settings.folder / name
    manifest, why = valid_manifest(folder, described, inputs)
    if manifest is not None:
        return manifest | {"folder": str(folder), "built": False}
    if why and not keep:
        log.warning("%s is built anew: %s", folder, why)
    if folder.exists() and not keep:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = build(folder)
    return write_manifest(folder, name, described, inputs, metrics) | {"folder": str(folder), "built": True}
