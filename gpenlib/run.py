"""The stages of the workbench, a method each: ``run = Run.of(globals())``, then ``run.infer("int8")``."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from gpenlib.architecture.checkpoints import Weights, load_weights, weights_file
from gpenlib.cluster.photos import enhance_on_cluster
from gpenlib.cluster.score import baselines_on_cluster, restore_on_cluster
from gpenlib.compile.build import TIMES, Build, build_int8, compile_model, measure_sensitivity
from gpenlib.compile.calibrate import open_calibration_data
from gpenlib.compile.sensitivity import Label, compare_artefacts
from gpenlib.data.faces import DataError, Split, made_here, open_faces, open_folder, pair_up, photographs
from gpenlib.data.pairs import Pairs, write_pack
from gpenlib.data.tasks import baseline_name
from gpenlib.errors import compare, layers
from gpenlib.errors.report import gallery_dtype, papermill_command, write_report
from gpenlib.export import (
    ParityError,
    deploy_form,
    export_onnx,
    export_torchscript,
    export_training_form,
    summarise_graph,
)
from gpenlib.export.graphs import export_parity
from gpenlib.files import (
    did_you_mean,
    fingerprint,
    from_root,
    keep_aside,
    package_versions,
    read_json,
    resolve_path,
    sha256,
    shown,
    write_atomically,
    write_csv,
    write_json,
)
from gpenlib.images import Image, read_image, to_tensor
from gpenlib.infer import choose_backend, open_runtime
from gpenlib.infer.performance import steady_latency
from gpenlib.infer.scoring import Baselines, fit_to_score, restore_pairs, score_baselines, summarise
from gpenlib.photos import folder as photo_folder
from gpenlib.settings import (
    MODES,
    QUANTISED,
    REFERENCE,
    BuildConfig,
    PhotoSettings,
    QuantizeConfig,
    RunFolder,
    RunSettings,
    SettingsError,
    as_build_config,
    as_plain_name,
)
from gpenlib.stages import MANIFEST, Manifest, Stages, Work, code_digest, read_manifest, stage
from gpenlib.train.config import TrainConfig, TrainSettings
from gpenlib.train.trainer import RESUMABLE_CHANGES, clear_training, train, training_inputs

# What decides which faces are used
SPLIT = ("data_dir", "input_dir", "dataset_size", "calib_dir", "calib_size", "seed", "most_megapixels")
STRESS_FACTORS = (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
STRESS_FACES = 2
RESULTS = "05_errors/results.json"
PAGE = "report.html"

# The code that decides a stage's content: a change of it voids what stands.
DATA = ("files", "jobs", "images", "metrics", "architecture", "data", "settings", "stages", "run")
EXPORT = (*DATA, "export")
INFER = (*EXPORT, "infer")
COMPILE = (*INFER, "compile")
ERRORS = (*COMPILE, "errors")
REPORT = (*ERRORS, "plots")
PHOTOS = (*COMPILE, "photos")

log = logging.getLogger("gpenlib.run")
DRAWS = 3  # of calibration images: the built one and others beside it


class Run(Stages):
    """A run of the workbench: settings, and one method per stage.

    Parameters
    ----------
    settings : RunSettings or TrainSettings
        See :mod:`gpenlib.settings`.

    Attributes
    ----------
    settings : RunSettings or TrainSettings
    folder : Path
        ``outputs/<run>``; every stage has a folder in it.

    Every stage method returns the stage's manifest, a dict: ``metrics`` (its figures), ``folder``, ``built``
    (whether it was built just now), ``settings``, ``inputs``, ``outputs`` (SHA-256 by file), ``packages``.
    """

    @classmethod
    def of(cls, namespace: Mapping[str, Any], kind: type[RunFolder] = RunSettings) -> Run:
        """Open the run that a notebook's variables describe: ``Run.of(globals())``.

        Parameters
        ----------
        namespace : mapping
            Variables; those named like settings count. Numbers may be text, lists text with commas.
        kind : type
            RunSettings, or TrainSettings in notebook 06.

        Raises
        ------
        SettingsError
            If a value cannot be used, or papermill was given a parameter that does not exist.
        """
        return cls(kind.of(namespace))

    @property
    def place(self) -> str:
        """Folder of the run as texts show it."""
        return from_root(self.folder)

    # What stages read

    @property
    def weights(self) -> Weights:
        """The network; stages share one copy, which none may change."""
        path = weights_file(self.settings.weights)
        stamp = path.stat().st_mtime_ns if os.path.lexists(path) and path.is_file() else 0
        return _load(self.settings.weights, self.settings.key, stamp)

    def _once(self, names: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes, once for all runs that share these settings."""
        key = (make.__qualname__, *(getattr(self.settings, name) for name in names))
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    @property
    def split(self) -> Split:
        """The faces: ``evaluation``, ``calibration``, and a note on where the latter come from."""
        s = self.settings

        def split() -> Split:
            most = s.most_megapixels
            faces = open_faces(s.data_dir, s.dataset_size + s.calib_size, most_megapixels=most)
            if s.input_dir:
                faces = pair_up(open_folder(resolve_path(s.input_dir), None, most), faces)
            calibration = open_folder(resolve_path(s.calib_dir), None, most) if s.calib_dir else None
            return faces.split(s.dataset_size, s.calib_size, calibration, s.seed)

        return self._once(SPLIT, split)

    @property
    def evaluation(self) -> Pairs:
        """Input and truth of the scored faces: of ``input_dir``, or face k degraded with (seed, 0, k)."""
        return self._pairs[0]

    @property
    def calibration(self) -> Pairs:
        """Input and truth of the faces that calibrate int8, as those of ``evaluation``; seed (seed, 1, k)."""
        return self._pairs[1]

    @property
    def _pairs(self) -> tuple[Pairs, Pairs]:
        s, split = self.settings, self.split

        def pairs() -> list[Pairs]:
            sizes = (self.weights.model.config.in_size, self.weights.model.config.out_size)
            sets = enumerate((split.evaluation, split.calibration))
            return [Pairs(faces, s.degradation, *sizes, (s.seed, number)) for number, faces in sets]

        return self._once((*SPLIT, "weights", "key", "task"), pairs)

    @property
    def photographs(self) -> list[str]:
        """Names of the scored faces that are photographs, where others are samples: the default data's."""
        return [] if self.settings.data_dir else self.evaluation.names[: len(photographs())]

    def _left_out(self) -> dict[str, str]:
        """Return in words what ``input_dir`` and ``data_dir`` hold without a partner, if there is any."""
        left_out = self.split.evaluation.left_out
        return {"left_out": left_out} if left_out else {}

    def _examined(self) -> list[str]:
        """Return what to say of the scored faces; those without a truth are refused."""
        faces, task = self.split.evaluation, self.settings.task

        def examined() -> list[str]:
            return [*self._left_out().values(), *fit_to_score(faces, task)]

        # What is made here is square and coloured, and costs more to make than to open
        return [] if made_here(self.settings.data_dir) else self._once((*SPLIT, "task"), examined)

    def _data_inputs(self) -> dict[str, str | None]:
        """Digests of both sets: pictures, and what is done to them."""
        return {"evaluation": self.evaluation.digest(), "calibration": self.calibration.digest()}

    def _weights_input(self) -> dict[str, str | None]:
        return {"weights": self.weights.digest}

    # The stages

    def record(self, name: str, **results: Any) -> Manifest:
        """Keep what a notebook computed in its cells as a stage: ``<name of the keyword>.json`` each.

        Parameters
        ----------
        name : str
            Folder of the stage, such as ``"00_architecture"``.
        **results
            JSON-able; the one called ``results`` is the manifest's metrics.

        The manifest.

        Raises
        ------
        SettingsError
            If the name leads out of the run's folder.
        """
        for word in (*(Path(name).parts or ("",)), *results):
            if as_plain_name(word) != word:
                told = f"record: {shown(word)} in {shown(name)} is no plain name of a folder or file"
                raise SettingsError(f"{told}, such as '00_architecture'")
        key = {
            "settings": {"weights": self.settings.weights, "recorded": fingerprint(results)},
            "inputs": {"weights": self.weights.digest},
            "packages": package_versions(),
            "code": code_digest(DATA),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            for file, content in results.items():
                write_json(folder / f"{file}.json", content)
            return dict(results.get("results", {}))

        return self._stand(name, key, build)

    @stage("01_export", "weights", EXPORT, _weights_input)
    def export(self, work: Work) -> Mapping[str, Any]:
        """01_export: ONNX (deploy form by both exporters, training form) and TorchScript, with parity.

        Metrics: ``graphs`` (figures by file) and ``parity`` (difference from the training form by file and
        batch, on faces).

        Raises
        ------
        ParityError
            If a file is another function than the network.
        """
        model, folder = self.weights.model, work.folder
        deploy = deploy_form(model)
        export_training_form(model, folder / "training.onnx")
        export_onnx(deploy, folder / "deploy.onnx")
        export_onnx(deploy, folder / "deploy_torchscript_exporter.onnx", "torchscript")
        export_torchscript(deploy, folder / "deploy.pt")
        graphs = {path.name: summarise_graph(path).to_dict() for path in sorted(folder.glob("*.onnx"))}
        return {"graphs": graphs, "parity": export_parity(model, folder)}

    @stage("02_data", "task dataset_size calib_size seed save_packs", DATA, _data_inputs, resolved=_left_out)
    def data(self, work: Work) -> Mapping[str, Any]:
        """02_data: which faces are scored and which calibrate; ``save_packs``: the vendor's npz packs, too.

        Writes ``images.csv`` and, if asked, the packs ``evaluation/`` and ``calibration/``.

        Metrics: ``evaluation`` and ``calibration`` (numbers of images), ``note``, ``notes`` (files without a
        partner, pictures that were cropped), ``label``, ``in_size``, ``out_size``.

        Raises
        ------
        DataError
            If a folder is absent or holds too few images, no input has a truth, or pictures have no colour
            that task ``color`` could be scored against.
        """
        notes = self._examined()
        sets = {"evaluation": self.evaluation, "calibration": self.calibration}
        rows = [
            {"set": name, "index": index, "image": face, "sha256": pairs.faces.digest(index)}
            | ({"input_sha256": pairs.faces.inputs.digest(index)} if pairs.faces.inputs else {})
            for name, pairs in sets.items()
            for index, face in enumerate(pairs.faces.names)
        ]
        write_csv(work.folder / "images.csv", rows)
        for name, pairs in sets.items() if work.settings.save_packs else ():
            write_pack(work.folder / name, pairs)
        return {
            **{name: len(pairs) for name, pairs in sets.items()},
            "note": self.split.note,
            "notes": notes,
            "label": self.split.evaluation.label,
            "in_size": self.evaluation.in_size,
            "out_size": self.evaluation.out_size,
        }

    @stage("03_compile/float", "", EXPORT, _weights_input)
    def float_graph(self, work: Work) -> Mapping[str, Any]:
        """03_compile/float: ``model.onnx``, the float graph that every dtype starts from.

        Metrics: as :func:`gpenlib.export.summarise_graph`.
        """
        return summarise_graph(export_onnx(self.weights.model, work.folder / "model.onnx")).to_dict()

    def build_config(self) -> BuildConfig:
        """Return the build configuration: the file's, with dtype, backend, data and weights of the settings.

        ``backend="auto"`` stays in it: what it comes to is measured, and must not decide whether a stage
        stands.
        """
        s = self.settings
        choose_backend(s.backend, s.dtype, s.device)  # refuses early what cannot be run
        values = (as_build_config(s.build) if s.build else BuildConfig()).model_dump()
        values["name"] = as_plain_name(f"{s.weights}_{s.dtype}")
        values["backend"] |= {"dtype": s.dtype, "type": s.backend, "device": s.device}
        values["frontend"] |= {"checkpoint": s.weights, "key": s.key}
        values["frontend"]["type"] = "onnx" if s.weights.endswith(".onnx") else "pytorch"
        if s.calibrate_mode is not None:
            values["backend"]["quantize"]["calibrate_mode"] = s.calibrate_mode
        if s.dtype in QUANTISED:
            values["dataset"] |= {"path": None, "task": s.degradation, "sampler": {}}
        return BuildConfig.parse(values)

    def replaced_keys(self) -> list[str]:
        """Return the keys of the build file that the settings replace by other values, dotted."""
        if self.settings.build is None:
            return []
        written = _flat(as_build_config(self.settings.build).model_dump(exclude_unset=True))
        used = _flat(self.build_config().model_dump())
        return [key for key, value in written.items() if used.get(key, ...) != value]

    def _compile_inputs(self) -> dict[str, str | None]:
        calibrated = self.settings.dtype in QUANTISED
        return self._weights_input() | {"calibration": self.calibration.digest() if calibrated else None}

    def _resolved_build(self) -> dict[str, Any]:
        return {"build": self.build_config().model_dump()}

    @stage(
        "03_compile/{dtype}",
        "dtype device",
        COMPILE,
        _compile_inputs,
        lambda run: {"float": run.float_graph()},
        _resolved_build,
    )
    def compile(self, work: Work) -> Mapping[str, Any]:
        """03_compile: the artefact of one dtype in ``03_compile/<dtype>/artefact``.

        Parameters
        ----------
        dtype : str, optional
            Default: that of the settings.

        Metrics: the artefact's own manifest, see :func:`gpenlib.compile_model`.

        Raises
        ------
        RuntimeUnavailable, QuantisationError, CalibrationError, ParityError, DataError
            As :func:`gpenlib.compile_model`.
        """
        calibration = self.calibration if work.settings.dtype in QUANTISED else None
        artefact = compile_model(
            self.weights.model,
            self.build_config(),
            work.folder / "artefact",
            work.path("float", "model.onnx"),
            self._calibration_cache,
            calibration,
            self._times,
        )
        return dict(read_json(artefact / MANIFEST))

    @property
    def _calibration_cache(self) -> Path:
        """Folder that keeps what calibration found; its files are named by all that decides them."""
        return self.folder / "03_compile" / "calibration"

    @property
    def _times(self) -> Path:
        """File of all runs that keeps how long layers took in other forms."""
        return self.folder.parent / TIMES

    def artefact(self, dtype: str | None = None) -> Path:
        """Return the folder of a dtype's artefact, built if missing."""
        return Path(self.compile(dtype)["folder"]) / "artefact"

    @stage(
        "03_compile/sensitivity",
        "healed task",
        COMPILE,
        _compile_inputs,
        lambda run: {"float": run.float_graph()},
        _resolved_build,
    )
    def _sensitivity(self, work: Work) -> Mapping[str, Any]:
        built = self._round(work, [])
        options = built.backend.quantize
        measured = measure_sensitivity(
            built.deploy, built, built.data, options.sensitivity_images, work.settings.healed
        )
        return {**measured, "max_drop_db": options.max_drop_db}

    def _round(self, work: Work, excluded: list[str]) -> Build:
        """Round the network as its build does, from the calibration that was kept, without some layers."""
        config, deploy = self.build_config(), deploy_form(self.weights.model)
        options = QuantizeConfig.parse(
            config.backend.quantize.model_dump() | {"exclude_layers": excluded, "quantize_mode": "manual"}
        )
        data = open_calibration_data(config.dataset, deploy.config, self.calibration)
        return build_int8(deploy, options, work.path("float", "model.onnx"), data, self._calibration_cache)

    def sensitivity(self) -> Manifest:
        """03_compile/sensitivity: which layers int8 hurts most, those that the build excludes measured too.

        Metrics: as :func:`gpenlib.compile.build.measure_sensitivity`, and ``max_drop_db``, the budget of
        ``exclude_layers: auto``.
        """
        return self.with_(dtype="int8")._sensitivity()

    @stage(
        "03_compile/choice",
        "choice_faces device dtypes seed",
        COMPILE,
        lambda run: {**run._weights_input(), **run._data_inputs()},
        lambda run: {dtype: run.compile(dtype) for dtype in run.settings.dtypes},
        lambda run: {
            "builds": {d: run.with_(dtype=d).build_config().model_dump() for d in run.settings.dtypes}
        },
    )
    def choice(self, work: Work) -> Mapping[str, Any]:
        """03_compile/choice: quality of every dtype, of int8 in every calibration mode and for other draws.

        Metrics: ``faces`` and ``rows``, see :func:`gpenlib.compile.sensitivity.compare_artefacts`.
        """
        artefacts: dict[Label, Path] = {}
        aside = work.folder / "artefacts"  # only measured; notebook 04 builds the one it wants
        graph = Path(self.float_graph()["folder"]) / "model.onnx"

        def build(run: Run, mode: str | None, draw: int) -> None:
            label = run.settings.dtype, mode, draw
            if label not in artefacts:
                config = run.with_(calibrate_mode=mode).build_config()
                out = aside / "-".join(map(str, label))
                rest = self._calibration_cache, run.calibration, self._times
                try:
                    artefacts[label] = compile_model(self.weights.model, config, out, graph, *rest)
                except ParityError as error:
                    log.warning("%s is left out of the choice: %s", " ".join(map(str, label)), error)

        for dtype in work.settings.dtypes:
            mode = work.used[dtype]["metrics"].get("quantisation", {}).get("calibrate_mode")
            artefacts[dtype, mode, 0] = work.path(dtype, "artefact")
        quantised = [dtype for dtype in work.settings.dtypes if dtype in QUANTISED]
        for dtype, mode in product(quantised, MODES):
            build(self.with_(dtype=dtype), mode, 0)
        for dtype, draw in product(quantised[:1], range(1, DRAWS)):  # other images calibrate as well
            run = self.with_(dtype=dtype, seed=work.settings.seed + draw)
            if run.calibration.digest() != self.calibration.digest():
                build(run, next(mode for name, mode, _ in artefacts if name == dtype), draw)
        self._examined()
        faces = min(work.settings.choice_faces, len(self.evaluation))
        rows = compare_artefacts(artefacts, self.evaluation, faces, work.settings.device)
        shutil.rmtree(aside, ignore_errors=True)
        return {"faces": faces, "rows": rows}

    def _compiled(self) -> dict[str, Manifest]:
        """Compile; where no results stand, pictures that cannot be scored are refused before that."""
        if not (self.folder / "04_infer" / self.settings.dtype / MANIFEST).is_file():
            self._examined()
        return {"compile": self.compile(), "baselines": self.baselines()}

    @stage("04_baselines", "", INFER, _data_inputs, goes_on=True)
    def baselines(self, work: Work) -> Mapping[str, Any]:
        """04_baselines: score what needs no network, the input itself and one even colour, for every dtype.

        Writes ``results.json`` (the metrics): ``source``, where the colour comes from, and ``rows``, one per
        face; see :func:`gpenlib.infer.scoring.score_baselines`.
        """
        work_on = baselines_on_cluster if self._on_cluster() else score_baselines
        results = asdict(work_on(self.evaluation, self.calibration, work.finished))
        write_json(work.folder / "results.json", results)
        return results

    @stage(
        "04_infer/{dtype}",
        "dtype device batch_size save_images save_npz weights task chroma",
        INFER,
        _data_inputs,
        _compiled,
        _left_out,
        goes_on=True,
    )
    def infer(self, work: Work) -> Mapping[str, Any]:
        """04_infer: restore and score the evaluation faces with one dtype.

        Writes ``results.json`` (the metrics), with ``save_images`` ``images/*.png`` and with ``save_npz`` the
        unrounded outputs as ``npz/*.npz``.

        Parameters
        ----------
        dtype : str, optional
            Default: that of the settings.

        Metrics: ``images``, ``dtype``, ``backend``, ``executed_precision``, ``device``, ``batch_size``,
        ``weights``, ``task``, ``baseline``, ``data``, ``notes``, ``chroma_baseline``, a mean of every figure
        of :func:`gpenlib.infer.scoring.score` (``psnr_mean`` in dB, ``ssim_mean``, ...), ``ms_per_image``
        (median), and ``rows``, one per face.

        Raises
        ------
        DataError, ImageError
            If there are too few faces, or a picture is damaged or, under task ``color``, without colour.
        RuntimeUnavailable
            If the backend cannot run this dtype on this device.
        """
        s, folder, pairs, notes = work.settings, work.folder, self.evaluation, self._examined()
        runtime = open_runtime(work.path("compile", "artefact"), device=s.device, chroma=s.chroma)
        baselines = Baselines(**work.used["baselines"]["metrics"])
        images = folder / "images" if s.save_images else None
        npz = folder / "npz" if s.save_npz else None
        work_on = restore_on_cluster if self._on_cluster() else restore_pairs
        rows = work_on(runtime, pairs, s.batch_size, images, npz, baselines, work.finished)
        results = {
            "images": len(rows),
            **{name: getattr(s, name) for name in ("dtype", "device", "batch_size", "weights", "task")},
            "backend": runtime.backend,
            "executed_precision": runtime.executed_precision,
            "baseline": baseline_name(s.task),
            "data": self.split.evaluation.label,
            "notes": notes,
            "chroma_baseline": baselines.source,
            **summarise(rows),
            "rows": rows,
        }
        write_json(folder / "results.json", results)
        return results

    @stage(
        "03_latency",
        "dtypes device batch_size repeats",
        COMPILE,
        uses=lambda run: {dtype: run.compile(dtype) for dtype in run.settings.dtypes},
    )
    def latency(self, work: Work) -> Mapping[str, Any]:
        """03_latency: time the artefacts of all dtypes in turns, once for everything that speaks of times.

        Writes ``results.json`` (the metrics): ``rows``
        (:func:`gpenlib.infer.performance.interleaved_latency`) and ``note``, "" unless the machine was busy.
        """
        s, earlier, before = work.settings, read_manifest(self.folder / "03_latency")[0], {}
        if earlier and earlier["settings"]["batch_size"] == s.batch_size:
            same = [
                dtype for dtype, used in work.used.items() if earlier["inputs"].get(dtype) == used["digest"]
            ]
            medians = {row["label"]: row["median_ms"] for row in earlier["metrics"]["rows"]}
            before = {dtype: medians[dtype] for dtype in same}
        artefacts = {dtype: work.path(dtype, "artefact") for dtype in s.dtypes}
        runtimes = {dtype: open_runtime(path, device=s.device) for dtype, path in artefacts.items()}
        rows, note = steady_latency(runtimes, s.repeats, s.batch_size, before)
        write_json(work.folder / "results.json", {"rows": rows, "note": note})
        return {"rows": rows, "note": note}

    def _on_cluster(self) -> bool:
        """Return whether a Ray cluster does the work; no stage's key has it, since the results are equal."""
        return self.settings.engine == "ray"

    def output_reader(self, dtype: str) -> Callable[[str], Image]:
        """Return a function that reads the restored image of a face by name."""
        folder = Path(self.with_(dtype=dtype, save_images=True).infer()["folder"]) / "images"
        return lambda name: read_image(folder / f"{name}.png")

    @stage(
        "05_errors",
        "dtypes features_are_inception lpips_weights features_file repeats device batch_size run weights "
        "task data_dir",
        ERRORS,
        lambda run: {**run._files_inputs(), **run._data_inputs()},
        lambda run: run._compared(),
    )
    def _errors(self, work: Work) -> Mapping[str, Any]:
        s = work.settings
        files = {name: getattr(s, name) for name in ("lpips_weights", "features_file")}
        results = compare.analyse(
            {dtype: work.used[f"infer {dtype}"]["metrics"] for dtype in s.dtypes},
            {dtype: self.output_reader(dtype) for dtype in s.dtypes},
            self.evaluation,
            {name: Path(file) if file else None for name, file in files.items()},
            s.features_are_inception,
        )
        timed = work.used["latency"]["metrics"]
        results |= {"latency": timed["rows"], "timing_note": timed["note"]}
        artefacts = {dtype: work.used[f"compile {dtype}"]["metrics"] for dtype in s.dtypes}
        results["table"] = compare.with_costs(results["table"], artefacts, results["latency"])
        results["facts"] = {
            **{name: getattr(s, name) for name in ("run", "weights", "task", "device", "batch_size")},
            "weights_digest": self.weights.digest,
            "data": self.split.evaluation.label,
            "made_here": made_here(s.data_dir),
            "images": len(self.evaluation),
            "calibration": self.split.note,
            "in_size": self.evaluation.in_size,
            "out_size": self.evaluation.out_size,
            "faces_digest": self.evaluation.digest(),
        }
        write_csv(work.folder / "summary.csv", results["table"])
        write_json(work.folder / "results.json", results)
        return results

    def _files_inputs(self) -> dict[str, str | None]:
        files = {name: getattr(self.settings, name) for name in ("lpips_weights", "features_file")}
        return {name: sha256(Path(file)) if file else None for name, file in files.items()}

    def _compared(self) -> dict[str, Manifest]:
        """Manifests of 03 and 04 for every dtype, with images saved for comparison."""
        run, used = self.with_(save_images=True), {}
        for dtype in self.settings.dtypes:
            used[f"infer {dtype}"] = run.infer(dtype)
            used[f"compile {dtype}"] = run.compile(dtype)
        return used | {"latency": self.latency()}

    def errors(self) -> Manifest:
        """05_errors: compare every dtype with fp32 on the same faces, time them in turns, and report.

        Writes ``results.json`` (the metrics), ``summary.csv`` (their ``table``), with ``runs`` a comparison
        with other runs, and the page ``outputs/<run>/report.html``.

        Metrics: see :func:`gpenlib.errors.compare.analyse` and :func:`~gpenlib.errors.compare.with_costs`;
        ``latency`` holds the times and ``facts`` what was run on what. Beside them ``recommendation``,
        ``comparison`` (the manifest of :meth:`comparison`, or None) and ``report`` (path of the page).

        Raises
        ------
        SettingsError
            If ``dtypes`` names fp32 alone.
        DataError
            If one of ``runs`` has no results.
        """
        if len(self.settings.dtypes) < 2:
            raise SettingsError(
                f"dtypes={','.join(self.settings.dtypes)}: name fp32 and another, with commas"
            )
        page, earlier = self.folder / PAGE, read_manifest(self.folder / "05_report")[0]
        errors, report = self._errors(), self._report()
        ours = {manifest["outputs"][PAGE] for manifest in (earlier, report) if manifest}
        if page.exists() and (page.is_dir() or sha256(page) not in ours):
            keep_aside(page)  # edited by hand, or not ours at all
        if not page.is_file() or sha256(page) != report["outputs"][PAGE]:
            with write_atomically(page) as temporary:
                shutil.copyfile(Path(report["folder"]) / PAGE, temporary)
        return errors | {
            "recommendation": report["metrics"]["recommendation"],
            "comparison": self.comparison() if self.settings.runs else None,
            "report": str(page),
        }

    @stage(
        "05_layers",
        "layer_faces dtypes",
        ERRORS,
        lambda run: {**run._weights_input(), **run._data_inputs()},
        lambda run: {"float": run.float_graph(), "compile": run.compile(), "sensitivity": run.sensitivity()},
        lambda run: {"stress_factors": STRESS_FACTORS, **run._resolved_build()},
    )
    def _layers(self, work: Work) -> Mapping[str, Any]:
        model, pairs = self.weights.model, self.evaluation
        count = min(work.settings.layer_faces, len(pairs))
        images = [to_tensor(pairs.inputs(index)) for index in range(count)]
        quantisation = work.used["compile"]["metrics"]["quantisation"]
        # What `auto` excluded is known by now; measuring it again could come out otherwise.
        built = self._round(work, list(quantisation["excluded"]))
        stressed = torch.cat([torch.from_numpy(image) for image in images[:STRESS_FACES]])

        def call() -> None:
            with torch.inference_mode():
                built.deploy(stressed[:1])

        qdq = next((name for name, form in quantisation["forms"].items() if form == "qdq"), None)
        int8_file = work.path("compile", "artefact") / qdq if qdq else work.folder / "model.onnx"
        arithmetic = "the artefact's own QDQ file"
        if not qdq:
            built.write("qdq", int8_file)
            arithmetic = (
                "a QDQ file with the artefact's layers and scales; the artefact is in QOperator form, which "
                "rounds the layers' outputs too"
            )
        ranking = work.used["sensitivity"]["metrics"]["ranking"]
        with layers.measured_threads(call):
            analysed = layers.analyse_layers(
                built.float_path, int8_file, built.deploy, built.layers, images, ranking
            )
        with layers.measured_threads(call):  # again: what else the machine does may have changed
            half = layers.stress_half(model, stressed, STRESS_FACTORS)
        (work.folder / "model.onnx").unlink(missing_ok=True)
        results = {
            "dtype": self.build_config().backend.dtype,
            "faces": pairs.names[:count],
            "arithmetic": f"{arithmetic}; all that is not rounded to 8 bits is computed in float32",
            "excluded": quantisation["excluded"],
            **analysed,
            "half": half,
        }
        write_json(work.folder / "layers.json", results)
        return results

    def layers(self) -> Manifest | None:
        """05_layers: where int8 departs from float inside the network, and what breaks fp16.

        On the first ``layer_faces`` evaluation faces, for the first quantised one of ``dtypes``.

        None if no dtype is quantised. Metrics: ``dtype``, ``faces``, ``arithmetic`` (how the error of int8
        was computed), ``excluded`` (layers that the build left in float), ``rows``
        (:func:`gpenlib.errors.layers.analyse_layers`), ``half`` (rows of
        :func:`gpenlib.errors.layers.stress_half`).
        """
        dtype = next((dtype for dtype in QUANTISED if dtype in self.settings.dtypes), None)
        return self._layers(dtype) if dtype else None

    @stage(
        "05_comparison",
        "runs",
        ERRORS,
        lambda run: {name: sha256(run._results_file(name)) for name in run.settings.runs},
    )
    def comparison(self, work: Work) -> Mapping[str, Any]:
        """05_comparison: this run's results beside those of others that notebook 05 has made.

        Writes ``comparison.json`` (the metrics) and ``comparison.csv``. The first of ``runs`` is what the
        others are compared with.

        Metrics: ``rows`` (see :func:`gpenlib.errors.compare.compare_results`) and ``runs``, what each ran on
        what, by name.

        Raises
        ------
        DataError
            If a run has no results, with the command that makes them.
        """
        results = {name: read_json(self._results_file(name)) for name in work.settings.runs}
        try:
            compared: dict[str, Any] = {"rows": compare.compare_results(results)}
            write_csv(work.folder / "comparison.csv", compared["rows"])
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            where = ", ".join(str(self._results_file(name)) for name in results)
            told = f"one of {where} is not as notebook 05 writes it ({error!r:.100}); make it again"
            raise DataError(told) from error
        compared["runs"] = {name: result["facts"] for name, result in results.items()}
        write_json(work.folder / "comparison.json", compared)
        return compared

    def _results_file(self, name: str) -> Path:
        """Return the results of a run; raise with what to do if they are missing or of an older form."""
        root = self.folder.parent
        path = root / name / RESULTS
        todo = (
            f"make them with `papermill notebooks/05_errors.ipynb out.ipynb -p run {name}` and its parameters"
        )
        if not path.is_file():
            present = sorted(path.parents[1].name for path in root.glob(f"*/{RESULTS}"))
            there = f"; runs with results: {', '.join(present)}" if present else ""
            raise DataError(
                f"run {name!r} has no results at {path}{did_you_mean(name, present)}: {todo}{there}"
            )
        try:
            results = read_json(path)
        except (OSError, ValueError) as error:
            raise DataError(f"run {name!r}: {error}: {todo}") from None
        if not isinstance(results, dict) or "facts" not in results:
            raise DataError(
                f"run {name!r}: {path} does not say what it was made from (older version): {todo}"
            )
        return path

    @stage(
        "05_report",
        "max_drop_db worst runs",
        REPORT,
        uses=lambda run: {
            "errors": run._errors(),
            **({"comparison": run.comparison()} if run.settings.runs else {}),
        },
        resolved=lambda run: {"command": run._command()},
    )
    def _report(self, work: Work) -> Mapping[str, Any]:
        results = work.used["errors"]["metrics"]
        times = {name: results[name] for name in ("timing_note", "latency")}
        recommendation = compare.recommend(results["table"], work.settings.max_drop_db, **times)
        dtype = gallery_dtype(results["table"], recommendation.dtype)
        pairs = self.evaluation
        position = {name: index for index, name in enumerate(pairs.names)}
        readers = {name: self.output_reader(name) for name in (REFERENCE, dtype)}
        worst = compare.worst_faces(results["rows"], dtype, work.settings.worst, self.photographs)
        faces = compare.open_face_errors(
            worst,
            readers,
            lambda name: pairs.inputs(position[name]),
            lambda name: pairs.truths(position[name]),
        )
        compared = work.used["comparison"]["metrics"] if work.settings.runs else None
        command = self._command()
        page, leading, budget = work.folder / PAGE, self.photographs, work.settings.max_drop_db
        write_report(page, results, recommendation, (dtype, faces), command, compared, leading, budget)
        return {"recommendation": asdict(recommendation)}

    def _command(self) -> str:
        return papermill_command(self.settings)

    def photos(self) -> Manifest:
        """07_photos: find the faces of photographs, restore or colour them, put them back.

        Writes ``<dtype>/<original name>.jpg`` or ``.png``, the faces' crops (``faces/``), ``results.json``
        (the metrics), ``failures.jsonl`` where pictures could not be used and, where ``photos`` is empty, the
        examples that were taken (``examples/``).

        Metrics: ``photos`` (a row per photograph and dtype) and ``faces`` (a row per face and dtype), see
        :func:`gpenlib.photos.folder.rows_of`; ``failures`` (``photo`` and ``reason``) and ``note``.

        Raises
        ------
        DataError
            If there is no such file or folder, or no picture in it.
        """
        self._refuse_inputs_inside(self.folder / "07_photos")
        assert isinstance(self.settings, PhotoSettings)
        photo_folder.source_files(self.settings)  # what cannot be read is told before anything is compiled
        return self._photos()

    @stage(
        "07_photos",
        "photos networks photo_dtypes strength chroma faces upscale upscaler reach aligned frames detector "
        "asked_task device most_megapixels",
        PHOTOS,
        lambda run: photo_folder.source_digests(run.settings),
        lambda run: run._photo_networks(),
        goes_on=True,
    )
    def _photos(self, work: Work) -> Mapping[str, Any]:
        s, work_on = work.settings, enhance_on_cluster if self._on_cluster() else photo_folder.enhance_files
        artefacts = {
            weights: {dtype: work.path(f"{weights} {dtype}", "artefact") for dtype in s.photo_dtypes}
            for weights in s.networks
        }
        return photo_folder.enhance_run(s, artefacts, work.folder, work.finished, work_on)

    def _photo_networks(self) -> dict[str, Manifest]:
        """Manifests of 03 for every network and dtype; a second network has a run of its own."""
        s = self.settings
        used: dict[str, Manifest] = {}
        for number, weights in enumerate(s.networks):
            name = f"{s.run}-{as_plain_name(Path(weights).stem)}" if number else s.run
            run = self.with_(weights=weights, task=s.asked_task or "", run=name)
            used |= {f"{weights} {dtype}": run.compile(dtype) for dtype in s.photo_dtypes}
        return used

    def train(self) -> dict[str, Manifest]:
        """06_train: train what the configuration files describe, one after the other.

        Each goes to ``06_train/<name of the file>``: ``checkpoint.pt`` (resumable), ``weights.safetensors``
        (averaged, fp16: a ``weights`` of the other stages), ``log.jsonl``, ``samples/*.png``, TensorBoard's
        files and ``results.json`` (the metrics). Unlike the others these stages are built in place: a stopped
        training goes on from its checkpoint.

        The manifest of every part by its name. Metrics: ``stage``, ``task``, ``size``, ``steps``,
        ``batch_size``, ``data``, ``parameters``, ``device``, ``from_scratch`` (whether the encoder was new),
        and ``terms``: the means of every logged term over the first and the last fifth of the run.

        Raises
        ------
        TrainingError
            If a checkpoint of other settings is in the way, or a loss is not finite.
        DataError
            If there are too few images.
        """
        assert isinstance(self.settings, TrainSettings)
        return {name: self._train_part(name, config) for name, config in self.settings.configs().items()}

    def _train_part(self, name: str, config: TrainConfig) -> Manifest:
        inputs = training_inputs(config)
        key = {
            "settings": config.model_dump(mode="json", exclude=RESUMABLE_CHANGES),
            "inputs": inputs,
            "packages": package_versions(),
            "code": None,  # a training goes on under a new version: it is exact only within one anyway
        }

        place = f"06_train/{name}"
        if not self.settings.resume:
            with self._lock(place):
                clear_training(self.folder / place)
        return self._stand(place, key, lambda folder: train(config, folder, inputs), in_place=True)


@functools.lru_cache(maxsize=1)
def _load(weights: str, key: str, stamp: int) -> Weights:
    """Load weights; ``stamp`` changes when the file does."""
    return load_weights(weights, key)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return flat
