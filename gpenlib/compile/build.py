"""The build configuration: the vendor's YAML schema, strict, with our backends."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from numpy.typing import NDArray
from onnx import numpy_helper

from gpenlib.architecture import Gpen
from gpenlib.compile.calibrate import (
    Calibration,
    CalibrationData,
    cache_key,
    calibrate,
    load_calibration,
    open_calibration_data,
    save_calibration,
)
from gpenlib.compile.rounding import (
    ConvolutionLayer,
    QuantisationError,
    RoundedLayer,
    quantisable_layers,
    round_layers,
    select_layers,
    split_halves,
)
from gpenlib.compile.sensitivity import Probe, choose_exclusions, rank_layers
from gpenlib.compile.vendor import build_for_vendor
from gpenlib.compile.write import count_quantised, quantised_nodes, to_half, write_qdq, write_qoperator
from gpenlib.data.pairs import preprocess
from gpenlib.export import DeployGpen, ParityError, deploy_form, export_onnx, parity
from gpenlib.files import package_versions, resolve_path, sha256, write_json
from gpenlib.images import RGB_CHANNELS, FloatArray
from gpenlib.infer import RuntimeUnavailable, check_support, open_runtime
from gpenlib.infer.performance import auto_candidates, fastest_backend
from gpenlib.infer.runtime import (
    FILES,
    MANIFEST_FILE,
    MODEL_FILE,
    QUANTISED,
    Runtime,
    runtime_class,
    serves,
    write_torch_files,
)
from gpenlib.settings import BackendConfig, BuildConfig, QuantizeConfig, SettingsError, as_build_config

# ----------------------------------------------------------------------
# The build configuration: the vendor's YAML schema, strict, with our backends.


# ----------------------------------------------------------------------
# Run a finished artefact on held-out faces against the float network.

# The least PSNR against the float network (dB, data range 2) below which an artefact counts as broken.
# Sound ones lie far above: see notebook 03.
LEAST_PSNR = {"fp32": 90.0, "fp16": 50.0, "bf16": 35.0, "int8": 20.0, "int8_bf16": 20.0}


def verify(
    out_dir: Path, backend: str, device: str, images: Sequence[FloatArray], expected: Sequence[FloatArray]
) -> dict[str, Any]:
    """Run an artefact under one backend; return its figures for the manifest.

    Parameters
    ----------
    out_dir : Path
        The artefact folder.
    backend, device : str
    images : sequence of array
        Network inputs, float32 [1, 3, in_size, in_size] in [-1, 1].
    expected : sequence of array
        Outputs of the float network (:func:`float_outputs`).

    Returns
    -------
    dict
        ``parity`` (``faces``, ``mean``, ``worst``), ``executed_convolutions``, ``executed_precision``.

    Raises
    ------
    ParityError
        If the worst face lies below LEAST_PSNR.
    QuantisationError
        If the backend executes in float what it says to execute in int8.
    """
    runtime = open_runtime(out_dir, device=device, backend=backend)
    executed = runtime.executed_types()
    if runtime.dtype in QUANTISED and runtime.executed_precision.startswith("int8"):
        _check_executed_int8(executed, runtime)
    found = [parity(output, runtime(image)) for image, output in zip(images, expected, strict=True)]
    worst = min(found, key=lambda row: row.psnr)
    least = least_psnr(runtime)
    if worst.psnr < least:
        raise ParityError(
            f"{runtime.dtype} artefact reaches {worst.psnr:.1f} dB against the float network on its worst "
            f"held-out face under {backend} on {device}, at least {least} dB is expected"
        )
    mean = replace(
        worst, **{name: float(np.mean([getattr(row, name) for row in found])) for name in asdict(worst)}
    )
    return {
        "parity": {"faces": len(found), "mean": mean.to_dict(), "worst": worst.to_dict()},
        "executed_convolutions": executed,
        "executed_precision": runtime.executed_precision,
    }


def least_psnr(runtime: Runtime) -> float:
    """Return the limit for a runtime, in dB.

    TensorRT computes float32 in TF32, whose mantissa is as long as that of fp16, and ONNX Runtime has no
    option against it.
    """
    rounds_to_tf32 = runtime.device == "tensorrt" and runtime.dtype == "fp32"
    return LEAST_PSNR["fp16" if rounds_to_tf32 else runtime.dtype]


def float_outputs(deploy: DeployGpen, images: Sequence[FloatArray]) -> list[FloatArray]:
    """Run the float deploy form on every image, on its own device."""
    device = next(deploy.buffers()).device
    with torch.inference_mode():
        return [deploy(torch.from_numpy(image).to(device)).cpu().numpy() for image in images]


def _check_executed_int8(executed: Mapping[str, int], runtime: Runtime) -> None:
    """Fail unless the backend runs every quantised convolution in int8."""
    wanted = len(quantised_nodes(onnx.load(runtime.path)))
    ran = executed.get("i8", 0) + executed.get("u8", 0)
    if ran < wanted:
        raise QuantisationError(
            f"{runtime.backend} executes {ran} of {wanted} quantised convolutions in int8: {executed}"
        )


# ----------------------------------------------------------------------
# Correction of the output's mean: rounding must not tint the picture.
#
# The errors of all layers add up to a small shift of the output's mean that is nearly the same for every face
# (a tint). It is measured where it arises, by running the finished file on the calibration images, and taken
# out of the last bias, three numbers. This is empirical bias correction (Nagel et al., *Data-Free
# Quantization*, 2019, appendix D) at the one layer whose mean a viewer sees; inner layers are corrected for
# what rounding their own weights costs (:func:`gpenlib.compile.rounding.bias_correction`).

CORRECTED = "output_bias"


def correct_outputs(
    out_dir: Path, files: Mapping[str, str], device: str, data: CalibrationData, expected: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Give every ONNX file of an artefact the output mean of the float network, in place.

    Parameters
    ----------
    out_dir : Path
        The artefact folder, with its manifest written.
    files : mapping of backend to file name
        Backends that run on ``device``; a file that several of them read is run under the first.
    device : str
    data : CalibrationData
    expected : float64 [3]
        Mean of the float network's output over the calibration images, per channel, in [-1, 1].

    Returns
    -------
    dict of list of float
        By file: what was taken out of its bias, R G B, in [-1, 1].

    Raises
    ------
    QuantisationError
        If a graph does not end in the sum with a bias that ``export_onnx`` writes.
    """
    backends: dict[str, str] = {}
    for backend, name in files.items():
        backends.setdefault(name, backend)
    found = {}
    for name, backend in backends.items():
        runtime = open_runtime(out_dir, device=device, backend=backend)
        images = data.calibration("correct the mean")
        means = [runtime(image).mean(axis=(0, 2, 3), dtype=np.float64) for image in images]
        shift = np.mean(means, axis=0) - expected
        model = onnx.load(out_dir / name)
        add_to_output(model, -shift)
        onnx.save(model, out_dir / name)
        found[name] = shift.tolist()
    return found


def add_to_output(model: onnx.ModelProto, change: NDArray[np.float64]) -> None:
    """Change the last bias of a graph, in place; the bias gets a name of its own.

    (The exporter lets layers with equal biases share one constant.)

    Parameters
    ----------
    model : ModelProto
    change : float64 [3]
    """
    graph = model.graph
    node, slot = _last_bias(graph)
    old = next(tensor for tensor in graph.initializer if tensor.name == node.input[slot])
    value = numpy_helper.to_array(old)
    corrected = (value + change.reshape(1, RGB_CHANNELS, 1, 1)).astype(value.dtype)
    node.input[slot] = CORRECTED
    if not any(old.name in other.input for other in graph.node):
        graph.initializer.remove(old)
    graph.initializer.append(numpy_helper.from_array(corrected, CORRECTED))


def _last_bias(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, int]:
    """Return the last Add of an RGB constant, among the additions that end in the output, and its input."""
    producers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer if list(tensor.dims) == [1, RGB_CHANNELS, 1, 1]}
    waiting = [graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop(0))
        if node is None or node.op_type != "Add":
            continue
        for slot, name in enumerate(node.input):
            if name in constants:
                return node, slot
        waiting.extend(node.input)
    raise QuantisationError("the graph does not end in a sum with a bias of 3 channels: nothing to correct")


# ----------------------------------------------------------------------
# From the float graph and calibration images to int8 models.

QOPERATOR_FILE = "model_qoperator.onnx"


@dataclass(frozen=True)
class Int8Build:
    """Calibrated and rounded, ready to be written.

    Attributes
    ----------
    float_path : Path
        The float graph.
    layers : dict of RoundedLayer by module path
    calibration : Calibration
    report : dict
        For the manifest.
    """

    float_path: Path
    layers: dict[str, RoundedLayer]
    calibration: Calibration
    report: dict[str, Any]

    def write(self, form: str, target: Path) -> dict[str, int]:
        """Write ``"qdq"`` or ``"qoperator"``; return how many layers of each kind are quantised in the file.

        Raises
        ------
        QuantisationError
            If these are not all that were asked for.
        """
        model = split_halves(onnx.load(self.float_path))
        if form == "qdq":
            write_qdq(model, self.layers)
        else:
            write_qoperator(model, self.layers, self.calibration.output_ranges)
        counts = count_quantised(model)
        if sum(counts.values()) != len(self.layers):
            raise QuantisationError(
                f"{counts} convolutions are quantised in the written graph, expected {len(self.layers)}"
            )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target)
        return counts

    def write_all(self, forms: Mapping[str, str], folder: Path) -> dict[str, Any]:
        """Write a file per form; return what the manifest says of them and of every layer.

        Parameters
        ----------
        forms : mapping of backend to form
        folder : Path
            Gets ``model.onnx`` and, if there are two forms, the QOperator one as ``model_qoperator.onnx``.
        """
        names = {form: MODEL_FILE for form in forms.values()}
        if len(names) > 1:
            names["qoperator"] = QOPERATOR_FILE
        counts = {form: self.write(form, folder / name) for form, name in names.items()}
        return {
            "files": {backend: names[form] for backend, form in forms.items()},
            "layers": [layer.report.to_dict() for layer in self.layers.values()],
            "quantisation": {
                "forms": {name: form for form, name in names.items()},
                "quantised": next(iter(counts.values())),
                **self.report,
            },
        }


def int8_forms(options: BackendConfig, wanted: Sequence[str]) -> dict[str, str]:
    """Return the form of the int8 file for every backend that the artefact shall serve.

    ONNX Runtime on a CPU computes QOperator files in 8 bits and QDQ files in float32; OpenVINO and TensorRT
    read QDQ. A QDQ file serves ONNX Runtime too, if only slowly.

    Raises
    ------
    RuntimeUnavailable
        If ``quantize.format`` is qoperator and another backend is wanted.
    """
    asked = options.quantize.format
    if asked == "qoperator" and set(wanted) - {"onnxruntime"}:
        others = ", ".join(sorted(set(wanted) - {"onnxruntime"}))
        raise RuntimeUnavailable(f"quantize.format qoperator is for onnxruntime; {others} reads qdq")
    own = "qoperator" if options.device == "cpu" else "qdq"
    best = {"openvino": "qdq", "onnxruntime": own}
    forms = {backend: best[backend] if asked == "auto" else asked for backend in wanted}
    if "qdq" in forms.values():
        served = serves(options.dtype, wanted)
        forms |= {backend: "qdq" for backend in served if backend not in forms}
    return forms


def keep_form(folder: Path, manifest: Mapping[str, Any], also: Sequence[str]) -> dict[str, Any]:
    """Remove the form that ``auto`` did not choose, unless ``also`` asks for its backend.

    Returns
    -------
    dict
        What changes in the manifest.
    """
    backend, files = manifest["backend"], manifest["files"]
    forms = manifest["quantisation"]["forms"]
    if len(forms) < 2 or {files[name] for name in also} - {files[backend]}:
        return {}
    form = forms[files[backend]]
    if form == "qoperator":
        (folder / QOPERATOR_FILE).replace(folder / MODEL_FILE)
    else:
        (folder / QOPERATOR_FILE).unlink()
    kept = {name for name in files if form == "qdq" or files[name] == files[backend]}
    return {
        "files": {name: MODEL_FILE for name in files if name in kept},
        "quantisation": {**manifest["quantisation"], "forms": {MODEL_FILE: form}},
    }


def build_int8(
    deploy: DeployGpen,
    options: QuantizeConfig,
    float_path: Path,
    data: CalibrationData,
    cache_dir: Path | None = None,
) -> Int8Build:
    """Calibrate, choose layers, round.

    Parameters
    ----------
    deploy : DeployGpen
        The network of ``float_path``; ``exclude_layers: auto`` runs it.
    options : QuantizeConfig
    float_path : Path
    data : CalibrationData
    cache_dir : Path, optional
        Keeps what calibration found, for the next mode or form.

    Raises
    ------
    QuantisationError, CalibrationError, DataError
        If it cannot be made as configured.
    """
    model = split_halves(onnx.load(float_path))
    found = quantisable_layers(model)
    names = [layer.name for layer in found]
    by_hand = [] if options.exclude_automatically else options.exclude_layers
    chosen = select_layers(names, by_hand)  # fails before calibration if a name is wrong
    calibration, cached = calibrate_layers(model, sha256(float_path), found, data, cache_dir)
    thresholds = calibration.thresholds(options.calibrate_mode, options.percentile)
    means = calibration.input_means if options.bias_correction else None
    per_channel, power2 = options.quantize_per_channel, options.weight_scale == "power2"
    layers = round_layers(model, thresholds, chosen, per_channel, power2, means)
    report: dict[str, Any] = {
        "calibrate_mode": options.calibrate_mode,
        "calibration_images": calibration.images,
        "calibration_source": data.label,
        "calibration_digest": data.digest,
        "calibration_cached": cached,
    }
    if options.exclude_automatically:
        layers, report["automatic"] = exclude_automatically(deploy, layers, data, options)
    used = {tensor for layer in layers.values() for tensor in layer.report.tensors if thresholds[tensor] > 0}
    histograms = {name: seen for name, seen in calibration.histograms.items() if name in used}
    report["excluded"] = [name for name in names if name not in layers]
    report["histograms"] = {name: seen.summary(options.percentile) for name, seen in histograms.items()}
    report["clipped_share"] = {
        name: seen.clipped_share(thresholds[name]) for name, seen in histograms.items()
    }
    return Int8Build(float_path, layers, calibration, report)


def calibrate_layers(
    model: onnx.ModelProto,
    digest: str,
    layers: Sequence[ConvolutionLayer],
    data: CalibrationData,
    cache_dir: Path | None,
) -> tuple[Calibration, bool]:
    """Calibrate all quantisable layers, or take what an earlier run found; return also which it was.

    Parameters
    ----------
    model : ModelProto
        The float graph in halves.
    digest : str
        Of the float graph's file, for the cache.
    layers : sequence of ConvolutionLayer
    data : CalibrationData
    cache_dir : Path, optional
    """
    inputs = list(dict.fromkeys(tensor for layer in layers for tensor in layer.inputs))
    outputs = [layer.output for layer in layers]
    path = None
    if cache_dir is not None:
        settings = {**data.preprocessing(), "inputs": inputs, "outputs": outputs}
        path = cache_dir / f"{cache_key(digest, data.digest, settings)}.npz"
        if (cached := load_calibration(path)) is not None:
            return cached, True
    found = calibrate(model, inputs, outputs, data.calibration())
    found.check_alive(layer.inputs for layer in layers)
    if path is not None:
        save_calibration(found, path)
    return found, False


def exclude_automatically(
    deploy: DeployGpen, layers: dict[str, RoundedLayer], data: CalibrationData, options: QuantizeConfig
) -> tuple[dict[str, RoundedLayer], dict[str, Any]]:
    """Drop the most sensitive layers until the loss on calibration images fits ``max_drop_db``.

    Returns
    -------
    (dict of RoundedLayer, dict)
        What stays quantised, and the report: ``max_drop_db``, ``ranking``, ``steps``, ``images``.
    """
    probe = open_probe(deploy, data, options.sensitivity_images)
    ranking = rank_layers(probe, layers)
    names = [row.name for row in ranking]
    excluded, steps = choose_exclusions(
        lambda kept: probe.drop({name: layers[name] for name in kept}), names, options.max_drop_db
    )
    report = {
        "max_drop_db": options.max_drop_db,
        "images": len(probe.inputs),
        "ranking": [row.to_dict() for row in ranking],
        "steps": steps,
        "excluded": excluded,
    }
    return {name: layer for name, layer in layers.items() if name not in excluded}, report


def measure_sensitivity(
    deploy: DeployGpen, built: Int8Build, data: CalibrationData, images: int, healed: int
) -> dict[str, Any]:
    """Rank all quantised layers, and measure what leaving the worst of them in float brings.

    Parameters
    ----------
    deploy : DeployGpen
    built : Int8Build
        Without exclusions.
    data : CalibrationData
    images : int
        Calibration images to measure on.
    healed : int
        How many layers to leave in float at most.

    Returns
    -------
    dict
        ``images``; ``ranking`` (rows of LayerSensitivity); ``steps``: ``excluded`` (how many of the ranking
        stay in float), ``psnr`` (against the float network, dB) and ``drop_db`` (against the truth).
    """
    probe = open_probe(deploy, data, images)
    ranking = rank_layers(probe, built.layers)
    steps = []
    for count in range(min(healed, len(ranking) - 1) + 1):
        kept = {row.name: built.layers[row.name] for row in ranking[count:]}
        steps.append({"excluded": count, **probe.measure(kept)})
    return {"images": len(probe.inputs), "ranking": [row.to_dict() for row in ranking], "steps": steps}


def open_probe(deploy: DeployGpen, data: CalibrationData, images: int) -> Probe:
    """Return a probe over the first calibration images and their truths."""
    pairs = list(data.pairs(images))
    inputs = torch.cat([torch.from_numpy(image) for image, _ in pairs])
    return Probe(deploy, inputs, [truth for _, truth in pairs])


# ----------------------------------------------------------------------
# From a network and a build configuration to an artefact folder.


def compile_model(
    model: Gpen | DeployGpen,
    build: BuildConfig | str | Path | Mapping[str, Any],
    out_dir: str | Path,
    float_graph: Path | None = None,
    calibration_cache: Path | None = None,
) -> Path:
    """Build an artefact: export, calibrate and quantise as configured, choose the backend, verify it.

    With ``backend.type: auto`` the backends that serve the artefact are timed on it, here, and the fastest is
    recorded. The chosen backend and those of ``backend.also`` run it on held-out faces.

    Parameters
    ----------
    model : Gpen or DeployGpen
    build : BuildConfig, path of a YAML file, or mapping
        A mapping may be partial: ``{"backend": {"dtype": "int8"}, "dataset": {"path": "faces"}}``.
    out_dir : path
        The artefact folder; an older artefact in it is replaced.
    float_graph : Path, optional
        This model as :func:`gpenlib.export_onnx` wrote it, to save exporting it again; it is checked
        against the model like any artefact.
    calibration_cache : Path, optional
        Folder that keeps what calibration found, by model, images and preprocessing: another mode or form of
        int8 then needs no new pass.

    Returns
    -------
    Path
        ``out_dir`` with ``model.onnx``, what PyTorch's backends read if they were asked for
        (``model.safetensors``, ``model.pt``), and ``manifest.json`` (written last), whose ``files`` names
        the backends that can open it; with ``backend.type: tvm_vacc`` the vendor's files instead.

    Raises
    ------
    SettingsError
        If the configuration has unknown keys or wrong values.
    RuntimeUnavailable
        If a backend cannot run the dtype on ``backend.device``, the machine has no such device, or the
        backend is the vendor's compiler and that is not installed.
    VendorCompilerError
        If the vendor's compiler (``backend.type: tvm_vacc``) fails.
    QuantisationError, CalibrationError, DataError
        If int8 was asked for and cannot be made as configured.
    ParityError
        If the artefact does not reproduce the network.
    """
    config = as_build_config(build)
    deploy = model if isinstance(model, DeployGpen) else deploy_form(model)
    _check_frontend(config, deploy)
    _check_process_ops(config, deploy)
    out_dir = resolve_path(out_dir)
    if config.backend.type == "tvm_vacc":
        return build_for_vendor(config, deploy, out_dir)
    candidates = _candidates(config.backend)
    wanted = [*candidates, *config.backend.also]
    out_dir.mkdir(parents=True, exist_ok=True)
    older = {MANIFEST_FILE, QOPERATOR_FILE, *FILES.values()} - {MODEL_FILE}
    for name in older:
        (out_dir / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as name:
        work = Path(name)
        float_path = float_graph or export_onnx(deploy, work / "float.onnx")
        manifest: dict[str, Any] = {
            "kind": "gpen-artefact",
            "name": config.name,
            "dtype": config.backend.dtype,
            "backend": candidates[0],
            "backend_reason": "asked for",
            "backend_times": [],
            "device": config.backend.device,
            "in_size": deploy.config.in_size,
            "out_size": deploy.config.out_size,
            "network": deploy.config.to_dict(),
            "input": "float32 [N, 3, in_size, in_size], RGB, [-1, 1]",
            "build": config.model_dump(),
            "unused_keys": config.unused_keys(),
        }
        data = open_calibration_data(config.dataset, deploy.config.in_size, deploy.config.out_size)
        built = None
        manifest["files"] = {backend: FILES[backend] for backend in serves(config.backend.dtype, wanted)}
        if config.backend.dtype in QUANTISED:
            forms = int8_forms(config.backend, wanted)
            built = build_int8(deploy, config.backend.quantize, float_path, data, calibration_cache)
            manifest |= built.write_all(forms, work)
        else:
            manifest |= _write_float_model(config.backend.dtype, float_path, work / MODEL_FILE)
        for path in work.glob(f"{Path(MODEL_FILE).stem}*.onnx"):
            shutil.move(path, out_dir / path.name)
        manifest["torch_files"] = {
            path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in write_torch_files(deploy, config.backend.dtype, out_dir, wanted)
        }
        manifest["packages"] = package_versions()
        write_json(out_dir / MANIFEST_FILE, manifest)  # what the runtimes need to open it
        try:
            manifest |= _choose(config.backend, out_dir, candidates)
            if config.backend.dtype in QUANTISED and config.backend.type == "auto":
                manifest |= keep_form(out_dir, manifest, config.backend.also)
                write_json(out_dir / MANIFEST_FILE, manifest)
            if built is not None and config.backend.quantize.bias_correction:
                files = {
                    name: manifest["files"][name] for name in (manifest["backend"], *config.backend.also)
                }
                manifest["quantisation"]["output_shift"] = correct_outputs(
                    out_dir, files, config.backend.device, data, built.calibration.picture_mean
                )
            manifest["model_sha256"] = sha256(out_dir / MODEL_FILE)
            manifest["model_bytes"] = (out_dir / MODEL_FILE).stat().st_size
            manifest |= _verify(config.backend, manifest["backend"], deploy, out_dir, data)
        except BaseException:
            (out_dir / MANIFEST_FILE).unlink(missing_ok=True)
            raise
        write_json(out_dir / MANIFEST_FILE, manifest)
    return out_dir


def _candidates(options: BackendConfig) -> list[str]:
    """Return the backends to choose from; refuse before any work what cannot be built or verified here."""
    dtype, device = options.dtype, options.device
    asked = [*options.also, *([] if options.type == "auto" else [options.type])]
    for name in asked:
        check_support(name, dtype, device)
        runtime_class(name).check_device(device)
    return auto_candidates(dtype, device, options.also) if options.type == "auto" else [options.type]


def _choose(options: BackendConfig, out_dir: Path, candidates: list[str]) -> dict[str, Any]:
    """Return what the manifest says of the backend that ``auto`` comes to."""
    if options.type != "auto":
        return {}
    backend, reason, rows = fastest_backend(out_dir, options.dtype, options.device, candidates)
    return {"backend": backend, "backend_reason": reason, "backend_times": rows}


def _verify(
    options: BackendConfig, backend: str, deploy: DeployGpen, out_dir: Path, data: CalibrationData
) -> dict[str, Any]:
    """Verify the chosen backend and those of ``also``; return what the manifest says of both."""
    images = list(data.held_out())
    expected = float_outputs(deploy, images)
    found = {
        name: verify(out_dir, name, options.device, images, expected)
        for name in dict.fromkeys((backend, *options.also))
    }
    return {**found.pop(backend), "also": found}


def _check_frontend(config: BuildConfig, deploy: DeployGpen) -> None:
    """Refuse a configured input shape that is not the network's."""
    size = deploy.config.in_size
    for name, shape in (config.frontend.shape or {}).items():
        if name != "input" or list(shape[1:]) != [3, size, size]:
            raise ParityError(
                f"frontend.shape {name}={shape}: this network takes input=[N, 3, {size}, {size}]; "
                "override frontend.shape"
            )


def _check_process_ops(config: BuildConfig, deploy: DeployGpen) -> None:
    """Refuse preprocessing that does not end in the network's input size, before any work."""
    size = deploy.config.in_size
    try:
        preprocess(np.zeros((size, size, 3), np.uint8), config.dataset.operators(), size)
    except ValueError as error:
        given = config.dataset.process_ops
        fixed = [{**entry, "size": [size, size]} if "size" in entry else entry for entry in given]
        words = yaml.safe_dump(fixed, default_flow_style=True, sort_keys=False, width=10_000).strip()
        hint = f"; override dataset.process_ops={words}" if fixed != given else ""
        raise SettingsError(f"dataset.process_ops: {error}{hint}") from error


def _write_float_model(dtype: str, float_path: Path, target: Path) -> dict[str, Any]:
    """Write the model file of a floating-point dtype; return what the manifest says of it."""
    if dtype in ("fp32", "bf16"):  # bf16 is the float graph under an execution hint
        shutil.copy(float_path, target)
        return {}
    half, counts = to_half(onnx.load(float_path))
    onnx.save(half, target)
    return {"convolutions_by_weight_type": counts}
