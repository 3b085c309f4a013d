"""The folder that a compiled network is: its manifest, read with all guards, its hashes and its graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasPath, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gpenlib.architecture.model import MAX_SIZE
from gpenlib.export.recover import OF_INT8, check_graph, read_onnx
from gpenlib.files import read_text, sha256, shown
from gpenlib.images import RGB_CHANNELS
from gpenlib.jobs import processor
from gpenlib.settings import Backend, Dtype

log = logging.getLogger("gpenlib.infer")

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
MOST_MANIFEST = 64 << 20  # bytes
Side = Annotated[int, Field(ge=1, le=MAX_SIZE)]


class RuntimeUnavailable(RuntimeError):
    """A backend, device and dtype that do not go together, or an artefact that cannot be opened."""


class Artefact(BaseModel):
    """The part of an artefact's manifest that decides how it is opened."""

    model_config = ConfigDict(strict=True, frozen=True)
    dtype: Dtype
    backend: Backend | Literal["tvm_vacc"]
    in_size: Side
    out_size: Side
    network: dict[str, Any] = {}
    task: str | None = None  # what the weights were trained for, where their file said so
    # By backend, names that do not lead out of the folder. Manifests from before there were others have none.
    files: dict[str, Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]] = {}
    model_sha256: str | None = None
    torch_files: dict[str, dict[str, str | int]] = {}
    files_sha256: dict[str, str] = {}
    tuned_for: str | None = Field(None, validation_alias=AliasPath("tuning", "processor"))
    # fp16: the arithmetic that was faster in OpenVINO when it was built, by processor
    arithmetic: dict[str, Literal["f32", "f16"]] = {}
    # int8: "qdq" or "qoperator" by ONNX file
    forms: dict[str, str] = Field({}, validation_alias=AliasPath("quantisation", "forms"))

    def check_hash(self, path: Path) -> None:
        """Raise RuntimeUnavailable if a file is not the one that was built."""
        recorded = {self.files_sha256.get(path.name), self.torch_files.get(path.name, {}).get("sha256")}
        recorded.add(self.model_sha256 if path.name == MODEL_FILE else None)
        recorded -= {None}
        if not recorded and path.suffix != ".onnx":  # its graph is looked through; others may hold programs
            told = f"{path}: {MANIFEST_FILE} names no SHA-256 of it"
            raise RuntimeUnavailable(f"{told}; build the artefact anew with compile_model")
        if recorded and recorded != {sha256(path)}:
            told = f"{path}: changed since it was built, its SHA-256 is not the one in {MANIFEST_FILE}"
            raise RuntimeUnavailable(f"{told}; restore it, or build the artefact anew with compile_model")

    def warn_of_another_processor(self, path: Path) -> None:
        """Log if the layers of a file are written for another processor than this one."""
        if self.tuned_for not in (None, processor()):
            told = "%s: its layers were tuned for %s; built anew they are for %s"
            log.warning(told, path, self.tuned_for, processor())

    def check_graph(self, path: Path) -> None:
        """Raise ValueError unless an ONNX file holds a GPEN of the sizes in the manifest, and all of it."""
        model, others = read_onnx(path)
        shapes, graph = check_graph(model, OF_INT8), model.graph
        found = [shapes.get(end.name) for end in (*graph.input, *graph.output)]
        expected = [[1, RGB_CHANNELS, size, size] for size in (self.in_size, self.out_size)]
        if found != expected or others:
            raise ValueError(f"its input and output are {found}, by {MANIFEST_FILE} they are {expected}")


def read_artefact(folder: Path) -> Artefact:
    """Return what the manifest of an artefact folder says; raises as :func:`open_runtime`."""
    path = folder / MANIFEST_FILE
    missing = f"{folder}: not an artefact folder (no %s); make one with compile_model"
    if not path.is_file():
        raise FileNotFoundError(missing % MANIFEST_FILE)
    try:
        artefact = Artefact.model_validate_json(read_text(path, MOST_MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc'])):.80}={shown(first['input'])}: " if first["loc"] else ""
        told = f"{path}: {where}{first['msg']:.200}; build the artefact anew with compile_model"
        raise RuntimeUnavailable(told) from None
    except ValueError as error:
        raise RuntimeUnavailable(f"{error}; build the artefact anew with compile_model") from None
    if artefact.backend == "tvm_vacc":
        raise RuntimeUnavailable(f"{folder}: built for the vendor's chip (tvm_vacc); run it with its runtime")
    if not (folder / MODEL_FILE).is_file():
        raise FileNotFoundError(missing % MODEL_FILE)
    return artefact
