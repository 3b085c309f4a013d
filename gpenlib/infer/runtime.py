"""Run an artefact: one callable over the backends, float32 [N, 3, S, S] in [-1, 1] -> same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.images import FloatArray
from gpenlib.run import choice_error, read_json

DTYPES = ("fp32", "bf16", "fp16", "int8", "int8_bf16")
QUANTISED = ("int8", "int8_bf16")  # int8 convolutions; the rest in float32 or bfloat16
DEVICES = ("cpu", "cuda", "tensorrt")  # tensorrt: ONNX Runtime's way to the same GPU
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"

# What each backend can execute, by device. onnxruntime has no bf16 convolution on the CPU. PyTorch's fp16
# convolutions work on CPUs, but took twenty times as long as its float32 ones on one without fp16 arithmetic.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "openvino": {"cpu": DTYPES},
    "onnxruntime": dict.fromkeys(DEVICES, ("fp32", "fp16", "int8")),
    "torch": {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")},
    "torchscript": {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")},
}
BACKENDS = tuple(SUPPORTED)
FILES = {  # what each backend opens
    "openvino": MODEL_FILE,
    "onnxruntime": MODEL_FILE,
    "torch": "model.safetensors",
    "torchscript": "model.pt",
}
ONNX_BACKENDS = tuple(name for name, file in FILES.items() if file == MODEL_FILE)
_HOMES = {
    "openvino": ("onnx_runtimes", "OpenVinoRuntime"),
    "onnxruntime": ("onnx_runtimes", "OnnxRuntimeRuntime"),
    "torch": ("torch_runtimes", "TorchRuntime"),
    "torchscript": ("torch_runtimes", "TorchScriptRuntime"),
}


class RuntimeUnavailable(RuntimeError):
    """A backend, device and dtype that do not go together, or an artefact that cannot be opened."""


def check_support(backend: str, dtype: str, device: str = "cpu") -> None:
    """Raise unless ``backend`` can run ``dtype`` on ``device``; nothing is loaded.

    Raises
    ------
    ValueError
        If a name is unknown.
    RuntimeUnavailable
        If the combination does not exist.
    """
    if backend not in BACKENDS:
        raise ValueError(choice_error("backend", backend, ("auto", *BACKENDS)))
    _check_names(dtype, device)
    if runs(backend, dtype, device):
        return
    able = [f"{name} ({', '.join(by[device])})" for name, by in SUPPORTED.items() if device in by]
    raise RuntimeUnavailable(
        f"{backend} does not run {dtype} on {device}; available on {device}: {', '.join(able)}"
    )


def runs(backend: str, dtype: str, device: str) -> bool:
    """Return whether a known backend can run ``dtype`` on ``device``."""
    return dtype in SUPPORTED[backend].get(device, ())


def _check_names(dtype: str, device: str) -> None:
    """Raise ValueError for an unknown dtype or device."""
    for what, value, allowed in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in allowed:
            raise ValueError(choice_error(what, value, allowed))


def choose_backend(backend: str, dtype: str, device: str = "cpu") -> tuple[str, str]:
    """Resolve ``"auto"`` by a fixed order, without opening anything; return (backend, reason).

    :func:`gpenlib.infer.choice.fastest_backend` measures instead.
    """
    if backend != "auto":
        check_support(backend, dtype, device)
        return backend, "asked for"
    _check_names(dtype, device)
    for name in BACKENDS:
        if runs(name, dtype, device):
            return name, f"first backend that runs {dtype} on {device}"
    raise RuntimeUnavailable(f"no backend runs {dtype} on {device}")


class Runtime(ABC):
    """A loaded artefact. Call it with a float32 batch [N, 3, in_size, in_size] in [-1, 1].

    Attributes
    ----------
    backend, dtype, device : str
    path : Path
        The model file.
    in_size, out_size : int
    executed_precision : str
        What the processor really computes in, as the backend reports it.
    """

    backend: str
    executed_precision: str

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        self.path = folder / file_for(manifest, self.backend)
        self.threads = threads
        self.device = device
        self.dtype: str = manifest["dtype"]
        self.in_size: int = manifest["in_size"]
        self.out_size: int = manifest["out_size"]

    @classmethod  # noqa: B027 (not abstract: a backend for the CPU alone needs nothing)
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if the machine lacks what this backend needs for ``device``."""

    def __call__(self, batch: FloatArray) -> FloatArray:
        """Run one batch.

        Raises
        ------
        ValueError
            If the array is not float32 [N, 3, in_size, in_size] with N >= 1.
        """
        wanted = (3, self.in_size, self.in_size)
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1:] != wanted or not len(batch):
            raise ValueError(
                f"input {batch.dtype} {batch.shape}: expected float32 [N, 3, {self.in_size}, {self.in_size}]"
            )
        return self._run(np.ascontiguousarray(batch))

    @abstractmethod
    def _run(self, batch: FloatArray) -> FloatArray:
        """Run a checked batch."""

    @abstractmethod
    def executed_types(self) -> dict[str, int]:
        """Return how many convolutions (of both kinds) execute in each precision, such as ``{"i8": 28}``."""


def runtime_class(backend: str) -> type[Runtime]:
    """Return the class behind a backend's name; its module is imported only now."""
    module, name = _HOMES[backend]
    found: type[Runtime] = getattr(import_module(f"gpenlib.infer.{module}"), name)
    return found


def served_by(manifest: Mapping[str, Any]) -> list[str]:
    """Return the backends that can open an artefact, from its manifest."""
    if "files" in manifest:
        return list(manifest["files"])
    return serves(manifest["dtype"], [])  # written before there were others


def file_for(manifest: Mapping[str, Any], backend: str) -> str:
    """Return the name of the file that a backend opens in an artefact folder."""
    return str(manifest.get("files", FILES)[backend])


def serves(dtype: str, extra: Iterable[str]) -> list[str]:
    """Return the backends that open an artefact of ``dtype`` with the files of ``extra`` beside its ONNX."""
    named = {*ONNX_BACKENDS, *extra}
    return [name for name in BACKENDS if name in named and any(dtype in d for d in SUPPORTED[name].values())]


def open_runtime(
    artefact_dir: str | Path, threads: int | None = None, device: str = "cpu", backend: str | None = None
) -> Runtime:
    """Open an artefact folder written by :func:`gpenlib.compile_model`.

    Parameters
    ----------
    artefact_dir : path
        Holds ``model.onnx``, ``manifest.json`` and, for PyTorch, ``model.safetensors`` or ``model.pt``.
    threads : int, optional
        Worker threads; default is the backend's own choice.
    device : {"cpu", "cuda", "tensorrt"}
    backend : {"openvino", "onnxruntime", "torch", "torchscript", "auto"}, optional
        Default: the one that the artefact was built for. ``"auto"``: the first that serves the folder.

    Returns
    -------
    Runtime
        Callable: float32 [N, 3, S, S] in [-1, 1] -> same range, any N.

    Raises
    ------
    FileNotFoundError
        If the folder holds no artefact.
    RuntimeUnavailable
        If the backend cannot run this dtype on this device, the folder has no file for it, or the folder was
        built for the vendor's chip.
    """
    folder = Path(artefact_dir)
    manifest = read_artefact(folder)
    served, dtype = served_by(manifest), manifest["dtype"]
    chosen = backend or manifest["backend"]
    if chosen == "auto":
        able = [name for name in served if runs(name, dtype, device)]
        chosen = able[0] if able else choose_backend("auto", dtype, device)[0]
    check_support(chosen, dtype, device)
    if chosen not in served:
        raise RuntimeUnavailable(
            f"{folder} serves {', '.join(served)}; {chosen} needs {FILES[chosen]}: build the artefact with "
            f"backend.also: [{chosen}]"
        )
    file = folder / file_for(manifest, chosen)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; build the artefact with compile_model")
    kind = runtime_class(chosen)
    kind.check_device(device)
    return kind(folder, manifest, threads, device)


def read_artefact(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artefact folder; raises as :func:`open_runtime`."""
    for name in (MANIFEST_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            if name == MODEL_FILE and read_json(folder / MANIFEST_FILE).get("kind") == "vendor-build":
                raise RuntimeUnavailable(
                    f"{folder}: built for the vendor's chip (tvm_vacc); run it with the vendor's runtime"
                )
            raise FileNotFoundError(
                f"{folder}: not an artefact folder (no {name}); make one with compile_model"
            )
    return dict(read_json(folder / MANIFEST_FILE))
