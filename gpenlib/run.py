"""Settings of the stages: what a notebook's parameters mean, validated."""

from __future__ import annotations

import logging
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpenlib.architecture.checkpoints import Weights
from gpenlib.compile import compile_model
from gpenlib.compile.build import Int8Build, build_int8, measure_sensitivity
from gpenlib.compile.calibrate import MODES, open_calibration_data
from gpenlib.compile.sensitivity import compare_artefacts
from gpenlib.data.faces import DataError, Faces, embedded_faces, made_here, open_faces, open_folder
from gpenlib.data.pairs import Pack, Pairs, read_pack, write_pack
from gpenlib.data.tasks import baseline_name, find_task, make_pair
from gpenlib.errors.compare import (
    REFERENCE,
    FaceErrors,
    Recommendation,
    analyse,
    compare_results,
    faces_by_loss,
    open_face_errors,
    recommend,
    with_costs,
    worst_faces,
)
from gpenlib.errors.layers import analyse_layers, measured_threads, stress_half
from gpenlib.errors.report import write_report
from gpenlib.export import (
    assert_parity,
    deploy_form,
    export_onnx,
    export_torchscript,
    export_training_form,
    summarise_graph,
)
from gpenlib.export.graphs import run_onnx
from gpenlib.files import (
    fingerprint,
    nearest,
    read_json,
    resolve_path,
    sha256,
    valid_manifest,
    write_atomically,
    write_csv,
    write_json,
    write_manifest,
)
from gpenlib.images import read_image, to_tensor
from gpenlib.infer import choose_backend, open_runtime
from gpenlib.infer.performance import interleaved_latency
from gpenlib.infer.runtime import QUANTISED
from gpenlib.infer.scoring import MEANS, data_chroma, restore_pack, summarise
from gpenlib.settings import (
    BuildConfig,
    CompileSettings,
    DataSettings,
    ErrorSettings,
    InferSettings,
    QuantizeConfig,
    RunSettings,
    SettingsError,
    TrainConfig,
    TrainSettings,
    as_build_config,
)
from gpenlib.train.batches import open_training_faces
from gpenlib.train.trainer import (
    CHECKPOINT,
    RESUMABLE_CHANGES,
    Trainer,
    TrainingError,
    beginning_and_end,
    read_log,
)

# ----------------------------------------------------------------------
# Settings of the stages: what a notebook's parameters mean, validated.


# ----------------------------------------------------------------------
# What every stage does: return the standing manifest, or build the folder anew.

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


# ----------------------------------------------------------------------
# 02_data.


def data(settings: DataSettings) -> dict[str, Any]:
    """02_data: the evaluation and calibration packs.

    Each picture is degraded with a seed of its own: (``seed``, 0 or 1 for the set, number in the set). The
    manifest's ``inputs`` cover pictures and degradation, so that what is built on the packs is built anew
    when either changes; its settings hold task, seed and ``degradation``, the task's recipe.

    Metrics: ``evaluation`` and ``calibration`` (numbers of images), ``note``, ``label``, ``in_size``,
    ``out_size``.
    """
    weights = settings.load()
    config = weights.model.config
    source = open_faces(settings.data_dir, settings.dataset_size + settings.calib_size)
    calibration = open_folder(resolve_path(settings.calib_dir)) if settings.calib_dir else None
    parts = source.split(settings.dataset_size, settings.calib_size, calibration, settings.seed)
    chosen = {"evaluation": parts.evaluation, "calibration": parts.calibration}
    task = find_task(settings.task)
    inputs = {name: _digest(part, settings) for name, part in chosen.items()}
    described = {
        **settings.model_dump(include={"task", "dataset_size", "calib_size", "seed"}),
        "degradation": task.recipe,
        "in_size": config.in_size,
        "out_size": config.out_size,
    }

    def build(folder: Path) -> dict[str, Any]:
        for number, (name, part) in enumerate(chosen.items()):
            seed = (settings.seed, number)
            write_pack(folder / name, Pairs(part, settings.task, config.in_size, config.out_size, seed))
        return {
            **{name: len(part.names) for name, part in chosen.items()},
            "note": parts.note,
            "label": source.label,
            "in_size": config.in_size,
            "out_size": config.out_size,
        }

    return stage(settings, "02_data", described, inputs, build)


def evaluation_pack(settings: DataSettings) -> Pack:
    """Return the evaluation faces of a run (built if missing)."""
    return read_pack(Path(data(settings)["folder"]) / "evaluation")


def _digest(part: Faces, settings: DataSettings) -> str:
    """Return a hash of the pictures and of what is done to them; the seed counts where anything is drawn."""
    task = find_task(settings.task)
    return fingerprint(
        [part.combined_digest(), settings.task, task.recipe, settings.seed if task.seeded else None]
    )


# ----------------------------------------------------------------------
# 01_export.

PARITY_FACES = 2
TRAINING_FORM = "training.onnx"


def export(settings: RunSettings) -> dict[str, Any]:
    """01_export: ONNX (deploy form by both exporters, training form) and TorchScript, with parity.

    Metrics: ``graphs`` (figures by file) and ``parity`` (difference from the training form by file and
    batch, on faces).
    """
    weights = settings.load()
    inputs = {"weights": weights.digest}

    def build(folder: Path) -> dict[str, Any]:
        deploy = deploy_form(weights.model)
        export_training_form(weights.model, folder / TRAINING_FORM)
        export_onnx(deploy, folder / "deploy.onnx")
        export_onnx(deploy, folder / "deploy_torchscript_exporter.onnx", "torchscript")
        export_torchscript(deploy, folder / "deploy.pt")
        graphs = {path.name: summarise_graph(path).to_dict() for path in sorted(folder.glob("*.onnx"))}
        return {"graphs": graphs, "parity": _export_parity(weights, folder)}

    return stage(settings, "01_export", {"weights": settings.weights}, inputs, build)


def _export_parity(weights: Weights, folder: Path) -> dict[str, Any]:
    """Measure every exported file against the training form on faces, at batch 1 and 2; assert it."""
    size = weights.model.config.in_size
    source = embedded_faces(PARITY_FACES)
    faces = to_tensor([make_pair(source.read(i), "color", size)[0] for i in range(PARITY_FACES)])
    script = torch.jit.load(str(folder / "deploy.pt"))
    found: dict[str, Any] = {}
    for batch in (1, 2):
        image = faces[-batch:]
        with torch.inference_mode():
            expected = weights.model(torch.from_numpy(image)).numpy()
            outputs = {"deploy.pt": script(torch.from_numpy(image)).numpy()}
        for path in sorted(folder.glob("*.onnx")):
            if batch == 1 or path.name != TRAINING_FORM:  # that one is fixed at batch 1
                outputs[path.name] = run_onnx(path, image)
        for name, output in outputs.items():
            what = f"{name}, batch {batch}, against the training form"
            found.setdefault(name, {})[str(batch)] = assert_parity(expected, output, what).to_dict()
    return found


# ----------------------------------------------------------------------
# 03_compile.

FIELDS = set(CompileSettings.model_fields)
UNEXCLUDED = {"exclude_layers": [], "quantize_mode": "manual"}
HEALED = 8  # layers left in float at most when the healing is measured
CHOICE_FACES = 16


def compile(settings: CompileSettings) -> dict[str, Any]:
    """03_compile: the artefact of one dtype in ``03_compile/<dtype>/artefact``.

    Metrics: the artefact's own manifest.
    """
    weights = settings.load()
    config = build_config(settings)
    inputs = {"weights": weights.digest}
    described: dict[str, Any] = {"build": config.model_dump(exclude={"dataset": {"path"}})}
    if settings.dtype in QUANTISED:
        inputs["calibration"] = data(settings)["inputs"]["calibration"]

    def build(folder: Path) -> dict[str, Any]:
        artefact = compile_model(
            weights.model, config, folder / "artefact", float_graph(settings), calibration_cache(settings)
        )
        return dict(read_json(artefact / "manifest.json"))

    return stage(settings, f"03_compile/{settings.dtype}", described, inputs, build)


def float_graph(settings: RunSettings) -> Path:
    """Return the float ONNX graph that every dtype starts from, exported once per run."""
    weights = settings.load()

    def build(folder: Path) -> dict[str, Any]:
        return summarise_graph(export_onnx(weights.model, folder / "model.onnx")).to_dict()

    inputs = {"weights": weights.digest}
    return Path(stage(settings, "03_compile/float", {}, inputs, build)["folder"]) / "model.onnx"


def sensitivity(settings: CompileSettings, healed: int = HEALED) -> dict[str, Any]:
    """Part of 03_compile: which layers int8 hurts most, in ``03_compile/sensitivity``.

    Metrics: as :func:`gpenlib.compile.int8.measure_sensitivity`, and ``max_drop_db``, the budget of
    ``exclude_layers: auto``. Layers that the configuration excludes are measured like the others.
    """
    settings = CompileSettings.parse(settings.model_dump(include=FIELDS) | {"dtype": "int8"})
    weights = settings.load()
    config = build_config(settings)
    options = QuantizeConfig.parse(config.backend.quantize.model_dump() | UNEXCLUDED)
    inputs = {"weights": weights.digest, "calibration": data(settings)["inputs"]["calibration"]}

    def build(folder: Path) -> dict[str, Any]:
        deploy = deploy_form(weights.model)
        images = open_calibration_data(config.dataset, deploy.config.in_size, deploy.config.out_size)
        built = build_int8(deploy, options, float_graph(settings), images, calibration_cache(settings))
        found = measure_sensitivity(deploy, built, images, options.sensitivity_images, healed)
        return {**found, "max_drop_db": options.max_drop_db}

    described = {"quantize": options.model_dump(), "healed": healed}
    return stage(settings, "03_compile/sensitivity", described, inputs, build)


def choice(settings: Mapping[str, CompileSettings], faces: int = CHOICE_FACES) -> dict[str, Any]:
    """Part of 03_compile: quality of every dtype, and of int8 in every calibration mode, on the same faces.

    Parameters
    ----------
    settings : mapping of dtype to CompileSettings
        fp32 must be among them.
    faces : int
        The first so many evaluation faces.

    Returns
    -------
    dict
        The manifest; metrics: ``faces`` and ``rows``, see :func:`gpenlib.compile.quality.compare_artefacts`.
    """
    first = settings["fp32"]
    inputs, artefacts = {}, {}
    for dtype, own in settings.items():
        manifest = compile(own)
        inputs[dtype] = manifest["outputs"]["artefact/model.onnx"]
        artefacts[dtype, manifest["metrics"].get("quantisation", {}).get("calibrate_mode")] = (
            Path(manifest["folder"]) / "artefact"
        )
    pack = evaluation_pack(first)
    inputs["evaluation"] = data(first)["inputs"]["evaluation"]

    def build(folder: Path) -> dict[str, Any]:
        for dtype, own in settings.items():
            for mode in MODES if dtype in QUANTISED else ():
                if (dtype, mode) not in artefacts:
                    config = build_config(
                        CompileSettings.parse(own.model_dump(include=FIELDS) | {"calibrate_mode": mode})
                    )
                    target = folder / f"{dtype}-{mode}"
                    cache = calibration_cache(own)
                    graph = float_graph(own)
                    artefacts[dtype, mode] = compile_model(own.load().model, config, target, graph, cache)
        rows = compare_artefacts(artefacts, pack, faces, first.device)
        for path in folder.iterdir():
            shutil.rmtree(path)  # these artefacts were only measured; notebook 04 builds the one it wants
        return {"faces": min(faces, len(pack)), "rows": rows}

    return stage(first, "03_compile/choice", {"faces": faces}, inputs, build)


def calibration_cache(settings: RunSettings) -> Path:
    """Return the folder that keeps what calibration found."""
    return settings.folder / "03_compile" / "calibration"


def replaced_keys(settings: CompileSettings) -> list[str]:
    """Return the keys of the build file that the settings replace by other values, dotted."""
    if settings.build is None:
        return []
    given = flat_keys(as_build_config(settings.build).model_dump(exclude_unset=True))
    used = flat_keys(build_config(settings).model_dump())
    return [key for key, value in given.items() if used.get(key, ...) != value]


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= flat_keys(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat


def build_config(settings: CompileSettings) -> BuildConfig:
    """Return the build configuration of a stage: the file's, with our dtype, backend and calibration pack.

    ``backend="auto"`` stays in it: what it comes to is measured, and must not decide whether a stage stands.
    """
    choose_backend(settings.backend, settings.dtype, settings.device)  # refuses early what cannot be run
    base: BuildConfig = as_build_config(settings.build) if settings.build else BuildConfig()
    values = base.model_dump()
    values["name"] = f"{settings.weights}_{settings.dtype}".replace("/", "_")
    values["backend"]["dtype"] = settings.dtype
    values["backend"] |= {"type": settings.backend, "device": settings.device}
    values["frontend"]["checkpoint"] = settings.weights
    values["frontend"]["type"] = "onnx" if settings.weights.endswith(".onnx") else "pytorch"
    if settings.calibrate_mode is not None:
        values["backend"]["quantize"]["calibrate_mode"] = settings.calibrate_mode
    if settings.dtype in QUANTISED:
        folder = settings.folder / "02_data" / "calibration"
        values["dataset"] |= {"path": str(folder), "task": settings.task, "sampler": {}}
    return BuildConfig.parse(values)


# ----------------------------------------------------------------------
# 04_infer.


def infer(settings: InferSettings) -> dict[str, Any]:
    """04_infer: restore and score the evaluation faces with one dtype.

    Writes ``results.json`` (the metrics), with ``save_images`` ``images/*.png`` and with ``save_npz`` the
    unrounded outputs as ``npz/*.npz``.
    """
    faces = data(settings)
    artefact = compile(settings)
    backend = artefact["metrics"]["backend"]  # what compile_model measured, where the settings say auto
    inputs = {
        **faces["inputs"],  # calibration too: its mean colour makes a baseline
        "artefact": artefact["outputs"][f"artefact/{artefact['metrics']['files'][backend]}"],
    }
    described = {
        **settings.model_dump(include={"dtype", "device", "batch_size", "save_images", "save_npz"}),
        "backend": backend,
        "figures": fingerprint(MEANS),  # scored by another version's figures, results are void
    }

    def build(folder: Path) -> dict[str, Any]:
        runtime = open_runtime(Path(artefact["folder"]) / "artefact", device=settings.device)
        pack = read_pack(Path(faces["folder"]) / "evaluation")
        images = folder / "images" if settings.save_images else None
        npz = folder / "npz" if settings.save_npz else None
        chroma = data_chroma(pack)
        rows = restore_pack(runtime, pack, settings.batch_size, images, npz, chroma)
        results = {
            "images": len(rows),
            "dtype": settings.dtype,
            "backend": runtime.backend,
            "executed_precision": runtime.executed_precision,
            "device": settings.device,
            "batch_size": settings.batch_size,
            "weights": settings.weights,
            "task": settings.task,
            "baseline": baseline_name(settings.task),
            "data": faces["metrics"]["label"],
            "chroma_baseline": chroma.source,
            **summarise(rows),
            "rows": rows,
        }
        write_json(folder / "results.json", results)
        return results

    return stage(settings, f"04_infer/{settings.dtype}", described, inputs, build)


def output_reader(manifest: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that reads the restored image of a face by name."""
    folder = Path(manifest["folder"]) / "images"
    return lambda name: read_image(folder / f"{name}.png")


# ----------------------------------------------------------------------
# 05_errors/layers.

STRESS_FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
STRESS_FACES = 2
IN_FLOAT = "; all that is not rounded to 8 bits is computed in float32"


def layer_errors(settings: ErrorSettings) -> dict[str, Any]:
    """05_errors/layers: where int8 departs from float inside the network, and what breaks fp16.

    On the first ``layer_faces`` evaluation faces. Metrics: ``dtype``, ``faces``, ``arithmetic`` (how the
    error of int8 was computed), ``excluded`` (layers that the build left in float), ``rows`` and
    ``healing`` (:func:`gpenlib.errors.healing.analyse_layers`), ``half`` (rows of
    :func:`gpenlib.errors.half_stress.stress_half`).

    Raises
    ------
    SettingsError
        If no quantised dtype is among ``dtypes``.
    """
    dtype = quantised_dtype(settings)
    if dtype is None:
        raise SettingsError(
            f"dtypes={','.join(settings.dtypes)}: layer errors are those of int8; add one of "
            f"{', '.join(QUANTISED)}"
        )
    own = settings.for_dtype(dtype)
    faces = data(own)
    artefact = compile(own)
    count = min(settings.layer_faces, faces["metrics"]["evaluation"])
    inputs = {**faces["inputs"], "weights": artefact["inputs"]["weights"]}
    inputs |= {name: value for name, value in artefact["outputs"].items() if name.endswith(".onnx")}
    ranking = sensitivity(own)["metrics"]["ranking"]  # measured once, for 03 and 05
    described = {
        "dtype": dtype, "layer_faces": count, "stress_factors": STRESS_FACTORS, "ranking": ranking
    }  # fmt: skip

    def build(folder: Path) -> dict[str, Any]:
        results = _analyse(own, artefact, count, folder, ranking)
        write_json(folder / "layers.json", results)
        return results

    return stage(settings, "05_errors/layers", described, inputs, build)


def quantised_dtype(settings: ErrorSettings) -> str | None:
    """Return the quantised dtype whose layers are analysed, or None."""
    return next((dtype for dtype in QUANTISED if dtype in settings.dtypes), None)


def _analyse(
    own: InferSettings, artefact: Mapping[str, Any], count: int, folder: Path, ranking: Sequence[Any]
) -> dict[str, Any]:
    """Run the analysis on the first ``count`` evaluation faces."""
    model = own.load().model
    pack = evaluation_pack(own)
    images = [to_tensor(pack.inputs(index)) for index in range(count)]
    built = _rebuild(own, artefact)
    stressed = torch.cat([torch.from_numpy(image) for image in images[:STRESS_FACES]])
    deploy = deploy_form(model)

    def run() -> None:
        with torch.inference_mode():
            deploy(stressed[:1])

    with tempfile.TemporaryDirectory(dir=folder, prefix=".qdq-") as work, measured_threads(run):
        int8_file, arithmetic = _qdq_file(artefact, built, Path(work))
        found = analyse_layers(built.float_path, int8_file, deploy, built.layers, images, ranking)
    with measured_threads(run):  # again: what else the machine does may have changed
        half = stress_half(model, stressed, STRESS_FACTORS)
    return {
        "dtype": own.dtype,
        "faces": pack.names[:count],
        "arithmetic": arithmetic,
        "excluded": artefact["metrics"]["quantisation"]["excluded"],
        **found,
        "half": half,
    }


def _rebuild(own: InferSettings, artefact: Mapping[str, Any]) -> Int8Build:
    """Round the artefact's layers again, from the calibration that its build kept."""
    config = build_config(own)
    model = own.load().model
    # What `auto` excluded is known by now; measuring it again could come out otherwise.
    excluded = list(artefact["metrics"]["quantisation"]["excluded"])
    options = config.backend.quantize.model_copy(
        update={"exclude_layers": excluded, "quantize_mode": "manual"}
    )
    images = open_calibration_data(config.dataset, model.config.in_size, model.config.out_size)
    return build_int8(deploy_form(model), options, float_graph(own), images, calibration_cache(own))


def _qdq_file(artefact: Mapping[str, Any], built: Int8Build, work: Path) -> tuple[Path, str]:
    """Return a QDQ file of the artefact's network, and in words what its arithmetic is."""
    forms = artefact["metrics"]["quantisation"]["forms"]
    name = next((name for name, form in forms.items() if form == "qdq"), None)
    if name is not None:
        return Path(artefact["folder"]) / "artefact" / name, f"the artefact's own QDQ file{IN_FLOAT}"
    built.write("qdq", work / "model.onnx")
    return work / "model.onnx", (
        "a QDQ file with the artefact's layers and scales; the artefact is in QOperator form, which rounds "
        f"the layers' outputs too{IN_FLOAT}"
    )


# ----------------------------------------------------------------------
# 05_errors/comparison: this run's results beside those of others.

RESULTS = "05_errors/results.json"


def compare_runs(names: Sequence[str], settings: RunSettings) -> dict[str, Any]:
    """Compare the results of several runs that notebook 05 has made.

    Writes ``comparison.json`` (the metrics) and ``comparison.csv`` to ``05_errors/comparison`` of the run
    that ``settings`` name.

    Parameters
    ----------
    names : sequence of str
        Folders beside that run; the first is what the others are compared with.
    settings : RunSettings

    Returns
    -------
    dict
        The manifest. Metrics: ``rows`` (see :func:`gpenlib.errors.runs.compare_results`) and ``runs``, what
        each ran on what, by name.

    Raises
    ------
    DataError
        If a run has no results, with the command that makes them.
    ValueError
        If fewer than two are named.
    """
    root = settings.folder.parent
    files = {name: _results_file(root, name) for name in names}

    def build(folder: Path) -> dict[str, Any]:
        results = {name: read_json(path) for name, path in files.items()}
        found: dict[str, Any] = {
            "rows": compare_results(results),
            "runs": {name: result["facts"] for name, result in results.items()},
        }
        write_csv(folder / "comparison.csv", found["rows"])
        write_json(folder / "comparison.json", found)
        return found

    inputs = {name: sha256(path) for name, path in files.items()}
    return stage(settings, "05_errors/comparison", {"runs": list(names)}, inputs, build)


def _results_file(root: Path, name: str) -> Path:
    """Return the results of a run; raise with what to do if they are missing or of an older form."""
    path = root / name / RESULTS
    todo = f"make them with `papermill notebooks/05_errors.ipynb out.ipynb -p run {name}` and its parameters"
    if not path.is_file():
        present = sorted(found.parents[1].name for found in root.glob(f"*/{RESULTS}"))
        close = nearest(name, present, count=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        there = f"; runs with results: {', '.join(present)}" if present else ""
        raise DataError(f"run {name!r} has no results at {path}{hint}: {todo}{there}")
    if "facts" not in read_json(path):
        raise DataError(f"run {name!r}: {path} does not say what it was made from (older version): {todo}")
    return path


# ----------------------------------------------------------------------
# 05_errors/report: the page ``outputs/<run>/report.html``.

PAGE = "report.html"
NOTEBOOK_PARAMETERS = (
    "run", "weights", "task", "data_dir", "dataset_size", "dtypes", "backend", "device", "batch_size",
    "calib_dir", "calib_size", "worst", "lpips_weights", "features_file", "features_are_inception", "runs",
    "max_drop_db", "repeats", "layer_faces", "build", "calibrate_mode",
)  # fmt: skip
Manifest = dict[str, Any]


def report(
    settings: ErrorSettings, manifest: Manifest, runs: Mapping[str, Manifest], comparison: Manifest | None
) -> dict[str, Any]:
    """Write the page of a run and put a copy where it is found: ``outputs/<run>/report.html``.

    Parameters
    ----------
    settings : ErrorSettings
    manifest : mapping
        Of 05_errors.
    runs : mapping of dtype to mapping
        Manifests of 04_infer.
    comparison : mapping or None
        Manifest of :func:`gpenlib.stages.compare_runs`.

    Returns
    -------
    dict
        The manifest, with ``page``, the path of the copy. Metrics: ``recommendation``.
    """
    results = manifest["metrics"]
    choice = recommend(results["table"], settings.max_drop_db)
    command = papermill_command(settings)
    inputs = {"results.json": manifest["outputs"]["results.json"]}
    if comparison:
        inputs["comparison.json"] = comparison["outputs"]["comparison.json"]

    def build(folder: Path) -> dict[str, Any]:
        compared = comparison["metrics"] if comparison else None
        write_report(
            folder / PAGE, results, choice, _gallery(settings, results, choice, runs), command, compared
        )
        return {"recommendation": choice.to_dict()}

    described = {"command": command, "max_drop_db": settings.max_drop_db, "worst": settings.worst}
    found = stage(settings, "05_errors/report", described, inputs, build)
    page = settings.folder / PAGE
    if not page.is_file() or sha256(page) != found["outputs"][PAGE]:
        with write_atomically(page) as temporary:
            shutil.copyfile(Path(found["folder"]) / PAGE, temporary)
    return found | {"page": str(page)}


def papermill_command(settings: ErrorSettings) -> str:
    """Return the command that repeats a run of notebook 05; parameters that have their default are left out.

    Settings that the notebook has no parameter for (such as the seed) are named behind it.
    """
    changed = {
        name: value
        for name, value in settings.model_dump(exclude_defaults=True).items()
        if value is not None and not (isinstance(value, tuple) and not value)
    }
    words = ["papermill", "notebooks/05_errors.ipynb", "out.ipynb"]
    for name in NOTEBOOK_PARAMETERS:
        if name in changed:
            value = changed.pop(name)
            words += ["-p", name, ",".join(value) if isinstance(value, tuple) else str(value)]
    extra = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return shlex.join(words) + (f"  # and, set in Python: {extra}" if extra else "")


def _gallery(
    settings: ErrorSettings, results: Manifest, choice: Recommendation, runs: Mapping[str, Manifest]
) -> tuple[str, list[FaceErrors]]:
    """Return the faces on which the recommended precision loses most; fp32 recommended: the weakest one."""
    rows = results["rows"]
    dtype = choice.dtype if choice.dtype not in (None, REFERENCE) else faces_by_loss(rows)[0]
    assert dtype is not None  # None was replaced
    pack = evaluation_pack(settings)
    position = {name: index for index, name in enumerate(pack.names)}
    readers = {name: output_reader(runs[name]) for name in (REFERENCE, dtype)}
    chosen = worst_faces(rows, dtype, settings.worst)
    return dtype, open_face_errors(chosen, readers, lambda name: pack.inputs(position[name]))


# ----------------------------------------------------------------------
# 05_errors: what each precision costs, what to take, and the page for those who decide.


def errors(settings: ErrorSettings) -> Manifest:
    """05_errors: compare every dtype with fp32 on the same faces, time them in turns, and report.

    Writes ``results.json`` (the metrics), ``summary.csv`` (their ``table``), with ``runs`` a comparison with
    other runs, and the page ``outputs/<run>/report.html``.

    Metrics: see :func:`gpenlib.errors.analysis.analyse` and :func:`gpenlib.errors.costs.with_costs`;
    ``latency`` holds the times and ``facts`` what was run on what. Beside them the manifest gets
    ``recommendation``, ``comparison`` (the manifest of :func:`compare_runs`, or None) and ``report`` (path).
    """
    runs = {str(dtype): infer(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    artefacts = {str(dtype): compile(settings.for_dtype(dtype)) for dtype in settings.dtypes}
    faces = data(settings)
    inputs = {dtype: manifest["outputs"]["results.json"] for dtype, manifest in runs.items()}
    files = {name: getattr(settings, name) for name in ("lpips_weights", "features_file")}
    inputs |= {name: sha256(Path(file)) for name, file in files.items() if file}
    described = {
        "dtypes": list(settings.dtypes),
        "features_are_inception": settings.features_are_inception,
        "repeats": settings.repeats,
    }

    def build(folder: Path) -> Manifest:
        results = analyse(
            {dtype: manifest["metrics"] for dtype, manifest in runs.items()},
            {dtype: output_reader(manifest) for dtype, manifest in runs.items()},
            evaluation_pack(settings),
            {name: Path(file) if file else None for name, file in files.items()},
            settings.features_are_inception,
        )
        results["latency"] = _latency(artefacts, settings)
        results["table"] = with_costs(results["table"], _files(artefacts), results["latency"])
        results["facts"] = _facts(settings, faces, artefacts["fp32"]["inputs"]["weights"])
        write_csv(folder / "summary.csv", results["table"])
        write_json(folder / "results.json", results)
        return results

    manifest = stage(settings, "05_errors", described, inputs, build)
    comparison = compare_runs(settings.runs, settings) if settings.runs else None
    page = report(settings, manifest, runs, comparison)
    return manifest | {
        "recommendation": page["metrics"]["recommendation"],
        "comparison": comparison,
        "report": page["page"],
    }


def _latency(artefacts: Mapping[str, Manifest], settings: ErrorSettings) -> list[Manifest]:
    """Time every artefact in turn with the others: times of separate runs hold the noise of their moment."""
    runtimes = {
        dtype: open_runtime(Path(manifest["folder"]) / "artefact", device=settings.device)
        for dtype, manifest in artefacts.items()
    }
    return interleaved_latency(runtimes, settings.repeats, warm_up=1, batch_size=settings.batch_size)


def _files(artefacts: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return the size of the file that each artefact's backend opens, and why that backend."""
    found = {}
    for dtype, manifest in artefacts.items():
        metrics = manifest["metrics"]
        file = Path(manifest["folder"]) / "artefact" / metrics["files"][metrics["backend"]]
        found[dtype] = {"file_bytes": file.stat().st_size, "backend_reason": metrics["backend_reason"]}
    return found


def _facts(settings: ErrorSettings, faces: Manifest, digest: str) -> Manifest:
    """Return what was run on what; ``faces_digest`` covers the packed pictures and their order."""
    packed = {name: value for name, value in faces["outputs"].items() if name.startswith("evaluation/")}
    metrics = faces["metrics"]
    return {
        **settings.model_dump(include={"run", "weights", "task", "device", "batch_size"}),
        "weights_digest": digest,
        "data": metrics["label"],
        "made_here": made_here(settings.data_dir),
        "images": metrics["evaluation"],
        "calibration": metrics["note"],
        "in_size": metrics["in_size"],
        "out_size": metrics["out_size"],
        "faces_digest": fingerprint(packed),
    }


# ----------------------------------------------------------------------
# 06_train.

STARTED_FROM = "inputs.json"


def train(settings: TrainSettings) -> dict[str, dict[str, Any]]:
    """06_train: train what the configuration files describe, one after the other.

    Each goes to ``06_train/<name of the file>``: ``checkpoint.pt`` (resumable), ``weights.safetensors``
    (averaged, fp16: a ``weights`` of the other stages), ``log.jsonl``, ``samples/*.png``, TensorBoard's
    files and ``results.json`` (the metrics).

    Returns
    -------
    dict
        The manifest of every part by its name. Metrics: ``stage``, ``task``, ``size``, ``steps``,
        ``batch_size``, ``data``, ``parameters``, ``device``, ``from_scratch`` (whether the
        encoder was new), and ``terms``: the means of every logged term over the first and the
        last fifth of the run.

    Raises
    ------
    TrainingError
        If a checkpoint of other settings is in the way, or a loss is not finite.
    DataError
        If there are too few images.
    """
    return {name: _part(name, config, settings) for name, config in settings.configs().items()}


def _part(name: str, config: TrainConfig, settings: TrainSettings) -> dict[str, Any]:
    source = open_training_faces(config)
    inputs = _inputs(config, source)
    folder = resolve_path(config.run_dir)
    if not settings.resume and folder.exists():
        shutil.rmtree(folder)
    # A checkpoint that grew from another prior or other faces is no beginning of this run.
    started = folder / STARTED_FROM
    keep = (folder / CHECKPOINT).is_file() and started.is_file() and read_json(started) == inputs

    def build(folder: Path) -> dict[str, Any]:
        write_json(folder / STARTED_FROM, inputs)
        results = _train(config, source, folder)
        write_json(folder / "results.json", results)
        return results

    described = config.model_dump(mode="json", exclude=RESUMABLE_CHANGES)
    return stage(settings, f"06_train/{name}", described, inputs, build, keep)


def _train(config: TrainConfig, source: Faces, folder: Path) -> dict[str, Any]:
    """Train until the end; return the metrics."""
    trainer = Trainer(config)
    try:
        model = trainer.run()
    except TrainingError as error:
        raise TrainingError(f"{error}. To start anew in its place set resume to False") from error
    finally:
        trainer.board.finalize("done")  # closes the file, so that its hash stays
    trainer.save_weights()
    rows = read_log(folder)
    terms = {}
    for term in sorted({key for row in rows for key in row} - {"step"}):
        terms[term] = dict(zip(("first", "last"), beginning_and_end(rows, term), strict=True))
    return {
        **config.model_dump(include={"stage", "task", "size", "steps", "batch_size"}),
        "data": source.label,
        "parameters": sum(p.numel() for p in model.parameters()),
        "from_scratch": config.stage == "embed" or (config.stage == "finetune" and not config.init),
        "device": str(trainer.fabric.device),
        "terms": terms,
    }


def _inputs(config: TrainConfig, source: Faces) -> dict[str, str]:
    """Return hashes of the faces and of the weights to start from.

    Of the faces all names count, and the contents of the held-out ones: a data set of 70,000 photographs is
    not read through before the training starts.
    """
    count = len(source.names)
    held_out = range(max(0, count - config.holdout), count)
    inputs = {"faces": fingerprint([*source.names, source.take(held_out).combined_digest()])}
    if config.init:
        path = resolve_path(config.init)
        inputs["init"] = sha256(path) if path.is_file() else config.init
    return inputs
