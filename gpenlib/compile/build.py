"""From a network and a build configuration to an artefact: a list of steps, and the command that runs it."""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml

from gpenlib import settings
from gpenlib.architecture import Gpen
from gpenlib.architecture.checkpoints import load_weights
from gpenlib.compile import calibrate, rounding, tune, write
from gpenlib.compile.calibrate import Calibration, CalibrationData, open_calibration_data
from gpenlib.compile.rounding import QuantisationError, RoundedLayer, quantisable_layers, select_layers
from gpenlib.compile.sensitivity import Probe, choose_exclusions, rank_layers
from gpenlib.compile.vendor import build_for_vendor
from gpenlib.data.pairs import Pack, Pairs, preprocess
from gpenlib.export import DeployGpen, ParityError, deploy_form, export_onnx, parity
from gpenlib.export.graphs import TOLERANCE, Parity, extreme_inputs, save_onnx
from gpenlib.files import package_versions, read_json, resolve_path, sha256, shown, whole_number, write_json
from gpenlib.infer import Runtime, RuntimeUnavailable, check_support, open_runtime
from gpenlib.infer.artefact import MANIFEST_FILE, MODEL_FILE
from gpenlib.infer.performance import auto_candidates, fastest_backend
from gpenlib.infer.runtime import FILES, openvino_hint, runtime_class, serves, write_torch_files
from gpenlib.jobs import command, keep_memory, processor
from gpenlib.settings import QUANTISED, BackendConfig, BuildConfig, QuantizeConfig, SettingsError

# The least PSNR against the float network (dB, data range 2) below which an artefact counts as broken.
# Sound ones lie far above (notebook 03); a random network whose int8 is in order reaches 23 dB.
LEAST_PSNR = {"fp32": 90.0, "fp16": 50.0, "bf16": 35.0, "int8": 20.0, "int8_bf16": 20.0}
TIMES = ".times.json"  # beside the artefacts: how long layers took in other forms
MOST_CORRECTED = 16  # images on which the mean colour is corrected; its shift is nearly the same on each
HARM = 1 / 255  # half a grey level, in [-1, 1]: a correction that adds more to the mean's error is left out


@dataclass
class Build:
    """What the steps hand on; the last eight belong to int8."""

    deploy: DeployGpen
    backend: BackendConfig
    float_path: Path
    data: CalibrationData
    cache_dir: Path | None = None
    times: Path | None = None  # file with those of layers in other forms
    folder: Path = field(default_factory=Path)  # gets the files
    candidates: Sequence[str] = ()  # backends to choose from
    manifest: dict[str, Any] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)  # qdq or qoperator, by backend
    graph: onnx.ModelProto = field(init=False)  # the float graph in halves
    calibration: Calibration = field(init=False)
    thresholds: dict[str, float] = field(default_factory=dict)  # by tensor that layers read
    layers: dict[str, RoundedLayer] = field(default_factory=dict)  # by module path
    report: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, str] = field(default_factory=dict)  # form by layer, where it is not the first
    amx: bool = False  # whether the QOperator file is for a processor with AMX

    @property
    def in_openvino(self) -> bool:
        """Whether the QDQ file is for OpenVINO; TensorRT knows no step for each channel of an activation."""
        return self.backend.device == "cpu" and self.forms.get("openvino", "qdq") == "qdq"

    @property
    def unpromised(self) -> set[str]:
        """Backends that may not read this QDQ file: ONNX Runtime before 1.21 has no 8-bit DepthToSpace."""
        return {"onnxruntime"} if "wide" in self.tuned.values() else set()

    def write(self, form: str, target: Path) -> dict[str, int]:
        """Write the rounded layers as ``"qdq"`` or ``"qoperator"``; return how many of each kind it has."""
        model = copy.deepcopy(self.graph)
        if form == "qdq":
            write.write_qdq(model, self.layers, self.tuned)
        else:
            write.write_qoperator(model, self.layers, self.calibration.output_ranges, self.amx)
        counts = write.count_quantised(model)
        if sum(counts.values()) != len(self.layers):
            raise QuantisationError(f"{counts} convolutions of {len(self.layers)} are quantised in the graph")
        save_onnx(model, target)
        return counts

    def save_manifest(self) -> None:
        """Write the manifest, with the hashes of the files as they are now, for the runtimes to open."""
        files = sorted(path for path in self.folder.iterdir() if path.name in write.MODEL_FILES)
        self.manifest["files_sha256"] = {path.name: sha256(path) for path in files}
        self.manifest["model_sha256"] = self.manifest["files_sha256"][MODEL_FILE]
        self.manifest["model_bytes"] = (self.folder / MODEL_FILE).stat().st_size
        write_json(self.folder / MANIFEST_FILE, self.manifest)


def calibrate_layers(build: Build) -> None:
    """int8: record what the float network's layers see on calibration images, or take it from the cache."""
    if build.backend.dtype not in QUANTISED:
        return
    data, options = build.data, build.backend.quantize
    build.graph = rounding.split_halves(onnx.load(build.float_path))
    layers = quantisable_layers(build.graph)
    if not options.exclude_automatically:
        select_layers([layer.name for layer in layers], options.exclude_layers)  # a wrong name fails here
    inputs = list(dict.fromkeys(tensor for layer in layers for tensor in layer.inputs))
    outputs = [layer.output for layer in layers]
    digest, path, stored = data.chosen.digest(), None, None
    precision = calibrate.precision_for(data.size)
    if build.cache_dir is not None:
        setup = {**data.preprocessing(), "inputs": inputs, "outputs": outputs, "precision": precision}
        path = build.cache_dir / f"{calibrate.cache_key(sha256(build.float_path), digest, setup)}.npz"
        stored = calibrate.load_calibration(path, inputs, outputs)
    build.calibration = stored or calibrate.calibrate(
        build.graph, inputs, outputs, data.calibration(), precision
    )
    build.calibration.check_alive(layer.inputs for layer in layers)
    if path is not None and stored is None:
        calibrate.save_calibration(build.calibration, path)
    build.report = {
        "calibrate_mode": options.calibrate_mode,
        "calibration_images": build.calibration.images,
        "calibration_source": data.chosen.label,
        "calibration_digest": digest,
        "calibration_cached": stored is not None,
        "calibration_precision": precision,
    }


def round_weights(build: Build) -> None:
    """int8: choose the steps of activations and weights, round the weights, correct the layers' biases."""
    if build.backend.dtype not in QUANTISED:
        return
    options = build.backend.quantize
    build.thresholds = build.calibration.thresholds(options.calibrate_mode, options.percentile)
    build.layers = rounding.round_layers(
        build.graph,
        build.thresholds,
        [layer.name for layer in quantisable_layers(build.graph)],
        options.quantize_per_channel,
        options.weight_scale == "power2",
        build.calibration.input_means if options.bias_correction else None,
        build.calibration.output_ranges if build.in_openvino else None,
    )


def exclude_layers(build: Build) -> None:
    """int8: leave layers in float: those named, or the most sensitive until the loss fits the budget."""
    if build.backend.dtype not in QUANTISED:
        return
    options, layers, report = build.backend.quantize, build.layers, build.report
    if options.exclude_automatically:
        probe = open_probe(build.deploy, build.data, options.sensitivity_images)
        ranking = rank_layers(probe, layers)
        excluded, steps = choose_exclusions(
            lambda names: probe.measure({name: layers[name] for name in names})["drop_db"],
            [row.name for row in ranking],
            options.max_drop_db,
        )
        report["automatic"] = {
            "max_drop_db": options.max_drop_db,
            "images": len(probe.inputs),
            "ranking": [asdict(row) for row in ranking],
            "steps": steps,
            "excluded": excluded,
        }
        kept = [name for name in layers if name not in excluded]
    else:
        kept = select_layers(list(layers), options.exclude_layers)
    build.layers = {name: layers[name] for name in kept}
    thresholds = build.thresholds
    used = {tensor for name in kept for tensor in layers[name].report.tensors if thresholds[tensor] > 0}
    seen = {name: histogram for name, histogram in build.calibration.histograms.items() if name in used}
    report["excluded"] = [name for name in layers if name not in kept]
    report["histograms"] = {name: histogram.summary(options.percentile) for name, histogram in seen.items()}
    report["clipped_share"] = {name: seen[name].clipped_share(thresholds[name]) for name in seen}


def tune_layers(build: Build) -> None:
    """int8: time the forms in which OpenVINO reads each large layer, and keep the fastest; look for AMX."""
    options = build.backend
    if options.dtype not in QUANTISED or options.tune == "off":
        return
    build.amx = "qoperator" in build.forms.values() and "amx_int8" in processor()
    if build.amx:
        build.manifest["tuning"] = asdict(tune.Tuning(processor()))
    if build.in_openvino and "openvino" in build.forms:
        found = tune.tune(build.graph, build.layers, openvino_hint(options.dtype), build.times)
        build.tuned = found.forms
        build.manifest["tuning"] = asdict(found)
        for name, layer in build.layers.items():
            if found.forms.get(name) == "transposed":
                report = replace(layer.report, output_rounded=False)
                build.layers[name] = replace(layer, output_steps=None, report=report)


def write_files(build: Build) -> None:
    """Write the model files of every backend that the artefact is to serve."""
    options, folder, manifest = build.backend, build.folder, build.manifest
    backends = [*build.candidates, *options.also]
    manifest["files"] = {backend: FILES[backend] for backend in serves(options.dtype, backends)}
    if options.dtype in QUANTISED:
        names = {form: MODEL_FILE for form in build.forms.values()}
        if len(names) > 1:
            names["qoperator"] = write.QOPERATOR_FILE
        counts = [build.write(form, folder / name) for form, name in names.items()]
        served = [name for name in build.forms if name in backends or name not in build.unpromised]
        manifest["files"] = {name: names[build.forms[name]] for name in served}
        manifest["layers"] = [asdict(layer.report) for layer in build.layers.values()]
        manifest["quantisation"] = {"forms": {name: form for form, name in names.items()}}
        manifest["quantisation"] |= {"quantised": counts[0], **build.report}
    elif options.dtype == "fp16":
        half, manifest["convolutions_by_weight_type"] = write.to_half(onnx.load(build.float_path))
        save_onnx(half, folder / MODEL_FILE)
    else:  # bf16 is the float graph under an execution hint
        save_onnx(onnx.load(build.float_path), folder / MODEL_FILE)
    manifest["torch_files"] = {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in write_torch_files(build.deploy, options.dtype, folder, backends)
    }
    manifest["packages"] = package_versions()
    build.save_manifest()


def choose_fastest(build: Build) -> None:
    """auto: time the backends on the finished files; of two forms of int8 keep the one that is used."""
    options, folder, manifest = build.backend, build.folder, build.manifest
    if options.type != "auto":
        return
    backend, reason, rows = fastest_backend(folder, options.dtype, options.device, build.candidates)
    manifest |= {"backend": backend, "backend_reason": reason, "backend_times": rows}
    files, other = manifest["files"], folder / write.QOPERATOR_FILE
    if other.is_file() and {files[name] for name in options.also} <= {files[backend]}:
        form = manifest["quantisation"]["forms"][files[backend]]
        if form == "qoperator":
            other.replace(folder / MODEL_FILE)
        other.unlink(missing_ok=True)
        others = [name for name in files if form == "qdq" and name not in build.unpromised]
        kept = [name for name in files if name in others or files[name] == files[backend]]
        manifest["files"] = dict.fromkeys(kept, MODEL_FILE)
        manifest["quantisation"]["forms"] = {MODEL_FILE: form}
    build.save_manifest()


def correct_mean(build: Build) -> None:
    """int8: take the shift of the mean colour, as the finished files show it, out of the last bias."""
    # The errors of all layers add up to nearly the same tint on every face. This is empirical bias correction
    # (Nagel et al., Data-Free Quantization, 2019, appendix D) at the one layer whose mean a viewer sees.
    if build.backend.dtype not in QUANTISED or not build.backend.quantize.bias_correction:
        return
    manifest, report = build.manifest, build.manifest["quantisation"]
    backends: dict[str, str] = {}  # by file; one that several read is run under the first
    for backend in (manifest["backend"], *build.backend.also):
        backends.setdefault(manifest["files"][backend], backend)
    report["output_shift"] = {}
    for name, backend in backends.items():
        path = build.folder / name
        means = picture_means(build, backend, MOST_CORRECTED)
        shift = np.mean(means - build.calibration.picture_means[:MOST_CORRECTED], axis=0)
        model = onnx.load(path)
        write.add_to_output(model, -shift)
        before = path.rename(path.with_suffix(".before"))
        save_onnx(model, path)
        build.save_manifest()
        effect = picture_means(build, backend, 1)[0] - means[0]  # a constant: the same on every image
        if np.abs(shift + effect).max() <= np.abs(shift).max() + HARM:
            before.unlink()
            report["output_shift"][name] = shift.tolist()
        else:
            before.replace(path)
            report.setdefault("output_shift_left", {})[name] = shift.tolist()
    build.save_manifest()


def verify_artefact(build: Build) -> None:
    """Run the artefact on held-out faces under every backend asked for, against the float network."""
    images = list(build.data.held_out())
    device = next(build.deploy.buffers()).device
    keep_memory()  # at 512 px PyTorch takes 1.9 s in place of 3.1
    with torch.inference_mode():
        expected = [build.deploy(torch.from_numpy(image).to(device)).cpu().numpy() for image in images]
    rows = {}
    for backend in dict.fromkeys((build.manifest["backend"], *build.backend.also)):
        runtime = open_runtime(build.folder, device=build.backend.device, backend=backend)
        rows[backend] = verify(runtime, images, expected)
        if runtime.dtype == "fp16" and runtime.backend == "openvino":
            build.manifest["arithmetic"] = {processor(): runtime.executed_precision}
    build.manifest |= {**rows.pop(build.manifest["backend"]), "also": rows}
    build.save_manifest()


STEPS: list[tuple[str, Callable[[Build], None]]] = [
    ("calibrate", calibrate_layers),
    ("round", round_weights),
    ("exclude", exclude_layers),
    ("tune", tune_layers),
    ("write", write_files),
    ("choose", choose_fastest),
    ("correct", correct_mean),
    ("verify", verify_artefact),
]


def compile_model(
    model: Gpen | DeployGpen,
    build: BuildConfig | str | Path | Mapping[str, Any],
    out_dir: str | Path,
    float_graph: Path | None = None,
    calibration_cache: Path | None = None,
    calibration: Pairs | Pack | None = None,
    times: Path | None = None,
) -> Path:
    """Build an artefact: export, calibrate and quantise as configured, choose the backend, verify it.

    With ``backend.type: auto`` the backends that serve the artefact are timed on it, here, and the fastest is
    recorded. The chosen backend and those of ``backend.also`` run it on held-out faces. Whatever ends this
    early leaves ``out_dir`` as it was.

    Parameters
    ----------
    model : Gpen or DeployGpen
    build : BuildConfig, path of a YAML file, or mapping
        A mapping may be partial: ``{"backend": {"dtype": "int8"}, "dataset": {"path": "faces"}}``. Without
        ``dataset.task`` pictures are degraded for the task that the model's file notes, else for ``color``.
    out_dir : path
        The artefact folder; an older artefact in it is replaced, files of others stay. If one of them has
        the name of a file that is to be written, nothing is.
    float_graph : Path, optional
        This model as :func:`gpenlib.export_onnx` wrote it, to save exporting it again.
    calibration_cache : Path, optional
        Folder that keeps what calibration recorded, so that another mode or form of int8 needs no new pass.
    calibration : Pairs or Pack, optional
        Calibrate on all of these inputs instead of ``dataset``.
    times : Path, optional
        File that keeps how long layers took in other forms on this processor (``backend.tune``).

    Returns
    -------
    Path
        ``out_dir`` with ``model.onnx``, what PyTorch's backends read if they were asked for
        (``model.safetensors``, ``model.pt``), and ``manifest.json`` (written last), whose ``files`` names
        the backends that can open it; with ``backend.type: tvm_vacc`` the vendor's files instead.

    Raises
    ------
    SettingsError, DataError, CalibrationError, QuantisationError
        If the configuration is wrong, or int8 cannot be made as configured.
    RuntimeUnavailable, VendorCompilerError
        If a backend cannot run the dtype on ``backend.device`` here, or the vendor's is absent or fails.
    ParityError
        If the artefact does not reproduce the network.
    """
    config = settings.as_build_config(build)
    deploy = model if isinstance(model, DeployGpen) else deploy_form(model)
    if deploy.task and "task" not in config.dataset.model_fields_set:
        dataset = config.dataset.model_copy(update={"task": deploy.task})
        config = config.model_copy(update={"dataset": dataset})
    network, options = deploy.config, config.backend
    _check_sizes(config, network.in_size)
    out_dir = resolve_path(out_dir)
    if options.type == "tvm_vacc":
        return build_for_vendor(config, deploy, out_dir, calibration)
    auto = options.type == "auto"
    for name in options.also if auto else [*options.also, options.type]:
        check_support(name, options.dtype, options.device)
        runtime_class(name).check_device(options.device)
    candidates = auto_candidates(options.dtype, options.device, options.also) if auto else [options.type]
    forms = int8_forms(options, [*candidates, *options.also]) if options.dtype in QUANTISED else {}
    names = {MANIFEST_FILE, MODEL_FILE, *(FILES[name] for name in [*candidates, *options.also])}
    names |= {write.QOPERATOR_FILE} if len({*forms.values()}) > 1 else set()
    write.check_folder(out_dir, names, write.older_files(out_dir))
    data = open_calibration_data(config.dataset, network, calibration)
    manifest = {
        "kind": "gpen-artefact",
        "name": config.name,
        "dtype": options.dtype,
        "backend": candidates[0],
        "backend_reason": "asked for",
        "backend_times": [],
        "device": options.device,
        "in_size": network.in_size,
        "out_size": network.out_size,
        "network": network.to_dict(),
        "task": deploy.task,
        "input": "float32 [N, 3, in_size, in_size], RGB, [-1, 1]",
        "build": config.model_dump(),
        "unused_keys": config.unused_keys(),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as work:
        folder = Path(work) / "artefact"
        folder.mkdir()
        graph = float_graph or export_onnx(deploy, Path(work) / "float.onnx")
        state = Build(
            deploy, options, graph, data, calibration_cache, times, folder, candidates, manifest, forms
        )
        for _, step in STEPS:
            step(state)
        write.remove_older(out_dir)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST_FILE):  # that one last
            shutil.move(path, out_dir / path.name)  # which may be on another file system
    return out_dir


def build_int8(
    deploy: DeployGpen, options: QuantizeConfig, graph: Path, data: CalibrationData, cache: Path | None = None
) -> Build:
    """Calibrate, round and exclude, to look into int8 without an artefact; ``graph`` is the float one."""
    build = Build(deploy, BackendConfig(dtype="int8", quantize=options), graph, data, cache)
    for _, step in STEPS[:3]:
        step(build)
    return build


def measure_sensitivity(
    deploy: DeployGpen, built: Build, data: CalibrationData, images: int, healed: int
) -> dict[str, Any]:
    """Rank layers on the first ``images``; measure int8 with the worst 0 to ``healed`` of them in float.

    Each step has ``excluded``, ``psnr`` (against the float network, dB) and ``drop_db`` (against the truth).
    """
    whole_number("healed", healed, 0)
    probe = open_probe(deploy, data, images)
    ranking = rank_layers(probe, built.layers)
    steps = []
    for count in range(min(healed, len(ranking) - 1) + 1):
        kept = {row.name: built.layers[row.name] for row in ranking[count:]}
        steps.append({"excluded": count, **probe.measure(kept)})
    return {"images": len(probe.inputs), "ranking": [asdict(row) for row in ranking], "steps": steps}


def open_probe(deploy: DeployGpen, data: CalibrationData, images: int) -> Probe:
    """Return a probe over the first calibration images and their truths."""
    pairs = list(data.pairs(images))
    inputs = torch.cat([torch.from_numpy(image) for image, _ in pairs])
    return Probe(deploy, inputs, [truth for _, truth in pairs])


def picture_means(build: Build, backend: str, count: int) -> list[np.ndarray]:
    """Run the written file on the first calibration images; return each one's mean colour, float64 [3]."""
    runtime = open_runtime(build.folder, device=build.backend.device, backend=backend)
    images = build.data.calibration("correct the mean", count)
    return [runtime(image).mean(axis=(0, 2, 3), dtype=np.float64) for image in images]


def verify(runtime: Runtime, images: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, Any]:
    """Run images, float32 [1, 3, S, S]; fail unless the runtime does what it should, else describe it."""
    executed = runtime.executed_types()
    if runtime.dtype in QUANTISED and runtime.executed_precision.startswith("int8"):
        asked = len(write.quantised_nodes(onnx.load(runtime.path)))
        if (ran := executed.get("i8", 0) + executed.get("u8", 0)) < asked:
            raise QuantisationError(
                f"{runtime.backend} executes {ran} of {asked} quantised convolutions in int8: {executed}"
            )
    rows = [parity(output, runtime(image)) for image, output in zip(images, expected, strict=True)]
    worst = min(rows, key=lambda row: row.psnr)
    if worst.psnr < least_psnr(runtime):
        raise ParityError(
            f"{runtime.dtype} artefact reaches {worst.psnr:.1f} dB against the float network on its worst "
            f"held-out face under {runtime.backend} on {runtime.device}, expected are at least "
            f"{least_psnr(runtime)} dB"
        )
    for image in extreme_inputs(runtime.in_size):
        if not np.isfinite(runtime(image.numpy())).all():
            raise ParityError(
                f"{runtime.dtype} artefact under {runtime.backend} on {runtime.device} returns NaN or "
                f"infinity for a picture of {image.min():g} to {image.max():g}"
            )
    mean = Parity(*np.mean([astuple(row) for row in rows], axis=0).tolist())
    return {
        "parity": {"faces": len(rows), "mean": mean.to_dict(), "worst": worst.to_dict()},
        "executed_convolutions": executed,
        "executed_precision": runtime.executed_precision,
    }


def least_psnr(runtime: Runtime) -> float:
    """Return the limit for a runtime, in dB; TensorRT computes float32 in TF32, with the mantissa of fp16."""
    tf32 = runtime.device == "tensorrt" and runtime.dtype == "fp32"
    return LEAST_PSNR["fp16" if tf32 else runtime.dtype]


def int8_forms(options: BackendConfig, backends: Sequence[str]) -> dict[str, str]:
    """Return the form of the int8 file for every backend that the artefact shall serve."""
    # ONNX Runtime on a CPU computes QOperator files in 8 bits, QDQ files in float32; OpenVINO reads QDQ.
    asked = options.quantize.format
    if asked == "qoperator" and (rest := sorted(set(backends) - {"onnxruntime"})):
        raise RuntimeUnavailable(f"quantize.format qoperator is for onnxruntime; {', '.join(rest)} reads qdq")
    best = {"openvino": "qdq", "onnxruntime": "qoperator" if options.device == "cpu" else "qdq"}
    forms = {backend: best[backend] if asked == "auto" else asked for backend in backends}
    if "qdq" in forms.values():
        forms |= {backend: "qdq" for backend in serves(options.dtype, backends) if backend not in forms}
    return forms


def _check_sizes(config: BuildConfig, size: int) -> None:
    """Refuse an input shape, or preprocessing, that is not the network's."""
    for name, shape in (config.frontend.shape or {}).items():
        if name != "input" or list(shape[1:]) != [3, size, size]:
            raise ParityError(
                f"frontend.shape {shown(name)}={shown(shape)}: this network takes "
                f"input=[N, 3, {size}, {size}]; override frontend.shape"
            )
    try:
        preprocess(np.zeros((size, size, 3), np.uint8), config.dataset.operators(), size)
    except ValueError as error:
        operators = config.dataset.process_ops
        fixed = [{**entry, "size": [size, size]} if "size" in entry else entry for entry in operators]
        words = yaml.safe_dump(fixed, default_flow_style=True, sort_keys=False, width=10_000).strip()
        hint = f"; override dataset.process_ops={words}" if fixed != operators else ""
        raise SettingsError(f"dataset.process_ops: {error}{hint}") from error


def compile_file(config: BuildConfig) -> Path:
    """Build ``workspace.path``/``name`` from ``frontend.checkpoint``."""
    checkpoint = config.frontend.checkpoint
    if checkpoint is None:
        raise SettingsError("frontend.checkpoint is not set; give the name of weights or a file")
    if (config.frontend.type == "onnx") != (Path(checkpoint).suffix == ".onnx"):
        raise SettingsError(
            f"frontend.type={config.frontend.type!r} does not go with frontend.checkpoint={checkpoint!r}; "
            "onnx is for .onnx files, pytorch for checkpoints and names of weights"
        )
    workspace = resolve_path(config.workspace.path)
    if not config.workspace.inside:  # the vendor's compiler gets one below workspace.path/name
        config = config.model_copy(update={"workspace": settings.WorkspaceConfig()})
    model = load_weights(checkpoint, config.frontend.key).model
    folder, cache, times = workspace / config.name, workspace / ".calibration", workspace / TIMES
    return compile_model(model, config, folder, calibration_cache=cache, times=times)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Build an artefact and print where it lies and how close it is to the float network."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib compile", description=main.__doc__)
    parser.add_argument("build", help="YAML build configuration")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values in place of the file's")
    options = parser.parse_args(arguments)
    overrides = settings.parse_overrides(options.overrides)
    folder = compile_file(BuildConfig.from_yaml(options.build, overrides))
    manifest = read_json(folder / MANIFEST_FILE)
    print(f"{folder}: {manifest['dtype']} for {manifest['backend']}")
    print("not used by this backend:", ", ".join(manifest["unused_keys"]) or "none of the keys that are set")
    if "parity" in manifest:
        mean = manifest["parity"]["mean"]["psnr"]
        print("against the float network:", "equal" if mean is None else f"{mean:.1f} dB (held-out faces)")
    return 0


def check_artefacts(artefacts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse manifests by dtype whose fp32 is not the float network, or whose int8 is not executed so."""
    error = artefacts["fp32"]["parity"]["worst"]["relative"]
    if not error <= TOLERANCE:
        raise ParityError(f"fp32 differs by {error:.1e} of the output's deviation, beyond {TOLERANCE:.0e}")
    for dtype in (name for name in artefacts if name in QUANTISED):
        made = artefacts[dtype]
        written, executed = sum(made["quantisation"]["quantised"].values()), made["executed_convolutions"]
        in_8_bits = executed.get("u8", 0) + executed.get("i8", 0)
        if not 0 < len(made["layers"]) == written or in_8_bits < written:
            counts = f"{len(made['layers'])} layers reported, {written} quantised in the file"
            raise QuantisationError(f"{dtype}: {counts}, {in_8_bits} executed in 8 bits; by type: {executed}")
