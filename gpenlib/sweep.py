"""The notebooks once for every combination of some values, and a page on which the runs are compared.

Each is a run of its own, and its whole folder is sealed by a manifest, as a stage's is: what stands under the
same key is not run again.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpenlib.architecture.checkpoints import weights_file
from gpenlib.cluster.engine import connect
from gpenlib.files import (
    cut,
    fingerprint,
    load_yaml,
    package_versions,
    repository_root,
    sha256,
    shown,
    write_text,
)
from gpenlib.notebooks import (
    PATTERN,
    NotebookError,
    check_parameters,
    declared_parameters,
    find_notebooks,
    run_notebooks,
)
from gpenlib.photos.folder import source_digests
from gpenlib.settings import REFERENCE, PhotoSettings, RunFolder, RunSettings, SettingsError
from gpenlib.stages import code_digest, read_manifest, standing, write_manifest
from gpenlib.train.config import TrainSettings

if TYPE_CHECKING:
    from gpenlib.run import Run

SWEEP, SWEEP_PAGE = "sweep", "sweep.html"
KINDS: dict[str, type[RunFolder]] = {kind.__name__: kind for kind in (TrainSettings, PhotoSettings)}


@dataclass(frozen=True)
class Cell:
    """A combination of a sweep's values."""

    varied: dict[str, Any]
    values: dict[str, Any]  # of all parameters, the name of the run among them
    key: dict[str, Any]  # what decides whether results stand, as of a stage

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.values["run"])

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return RunFolder(run=self.name).folder

    def results(self) -> dict[str, Any] | None:
        """Return the figures of a finished run whose files are as they were; None if it is to be run."""
        manifest, _ = standing(self.folder, self.key)
        return manifest and dict(manifest["metrics"])


def parse_grid(words: Sequence[str]) -> dict[str, list[Any]]:
    """Turn words ``name=value,value`` or ``name="a,b","c"`` into lists of values, read as YAML, by name."""
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, _, text = word.partition("=")
        texts = [value.strip() for value in next(csv.reader([" ".join(text.split())])) or [""]]
        if not name or not all(texts):
            raise SettingsError(f"--sweep {shown(word)}: expected name=value,value")
        if name == "run" or name in grid or len(set(texts)) < len(texts):
            told = "the runs are named by their values" if name == "run" else "each name and value once"
            raise SettingsError(f"--sweep {shown(word)}: {told}")
        grid[name] = [load_yaml(value, f"--sweep {shown(word)}", SettingsError) for value in texts]
    return grid


def run_name(base: str, varied: Mapping[str, Any]) -> str:
    """Return the name of a cell's run: its values in it, whatever the order in which they were given."""
    name = "-".join([base, *(f"{key}-{value}" for key, value in sorted(varied.items()))])
    plain = re.sub(r"[^\w.-]", "_", name).encode()
    if plain == name.encode() and len(plain) <= 100:
        return name
    return f"{plain[:90].decode(errors='ignore')}-{fingerprint(varied)[:8]}"


def open_cells(
    values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], selected: Sequence[Path]
) -> list[Cell]:
    """Return the cells of a grid; names that no selected notebook knows, and wrong values, are refused."""
    from gpenlib.run import REPORT, Run

    check_parameters(dict.fromkeys(grid), selected)
    base = RunFolder.parse({"run": values.get("run", RunFolder().run)}, "parameters").run
    same = {"packages": package_versions(), "code": code_digest((*REPORT, "train", "photos"))}
    memory: dict[Any, Any] = {}  # each picture is hashed once for all cells
    cells = []
    for combination in product(*grid.values()):
        varied = dict(zip(grid, combination, strict=True))
        all_values = {**values, **varied, "run": run_name(base, varied)}
        given: dict[str, Any] = {}
        inputs: dict[str, Any] = {path.name: sha256(path) for path in selected}
        for path in selected:
            settings, taken = settings_of(path, all_values)
            given |= taken
            inputs |= {f"{path.stem} {name}": d for name, d in read_by(Run(settings, memory)).items()}
        cells.append(Cell(varied, all_values, {"settings": given, "inputs": inputs, **same}))
    return cells


def settings_of(notebook: Path, values: Mapping[str, Any]) -> tuple[RunFolder, dict[str, Any]]:
    """Return the settings that a notebook makes of values, and those that it takes; one may be refused."""
    source = notebook.read_text(encoding="utf-8")
    kind = next((kind for name, kind in KINDS.items() if name in source), RunSettings)
    declared = declared_parameters(notebook)
    taken = {name: value for name, value in values.items() if name in declared}
    return kind.of({name: ast.literal_eval(text) for name, text in declared.items()} | taken), taken


def read_by(run: Run) -> dict[str, Any]:
    """Return what tells the files that a notebook with a run's settings reads, as its stages have it."""
    from gpenlib.train.batches import open_training_faces

    settings, files = run.settings, {name: path for name, path in run._given() if path.is_file()}
    if isinstance(settings, TrainSettings):
        configs = settings.configs().items()
        return {n: [c.model_dump(mode="json"), open_training_faces(c).names] for n, c in configs}
    photos: dict[str, Any] = {}
    if isinstance(settings, PhotoSettings):
        photos = source_digests(settings)
        files |= {name: weights_file(name) for name in settings.networks if weights_file(name).is_file()}
    digests = {name: sha256(path) for name, path in files.items()}
    return {**digests, **run._weights_input(), **run._data_inputs(), **photos}


def figures_of(cell: Cell, selected: Iterable[Path]) -> dict[str, Any]:
    """Return what the notebooks of a cell measured: of its precision, as far as one of them makes it."""
    numbers = {path.name[:2] for path in selected}
    dtype = str(cell.values.get("dtype") or REFERENCE)

    def metrics(place: str, *makers: str) -> dict[str, Any]:
        manifest = read_manifest(cell.folder / place)[0] if numbers & {*makers} else None
        return {**manifest["metrics"], "faces": manifest["inputs"].get("evaluation")} if manifest else {}

    scored, made = metrics(f"04_infer/{dtype}", "04", "05"), metrics(f"03_compile/{dtype}", "03", "04", "05")
    return {
        "dtype": dtype,
        "psnr": scored.get("psnr_mean"),
        "ssim": scored.get("ssim_mean"),
        "ms": scored.get("ms_per_image"),
        "images": scored.get("images"),
        "faces": scored.get("faces"),
        "mib": made["model_bytes"] / 2**20 if made else None,
        "psnr_fp32": metrics(f"04_infer/{REFERENCE}", "05").get("psnr_mean"),
    }


def in_turn(cells: Iterable[Cell], only: Sequence[str], folder: Path | None) -> Iterator[tuple[Cell, str]]:
    """Run cells one after the other; yield each with "" or what went wrong."""
    for cell in cells:
        try:
            run_notebooks(cell.values, only, folder)
            yield cell, ""
        except Exception as error:  # whatever it is, the others go on
            yield cell, told(str(error) or type(error).__name__)


def with_ray(cells: Iterable[Cell], only: Sequence[str]) -> Iterator[tuple[Cell, str]]:
    """Run cells several at a time as Ray places them, each by the command for it alone; yield as in_turn."""
    ray = connect()
    root = str(repository_root())
    variables = {"GPEN_OUTPUTS": str(RunFolder().folder.parent), "PYTHONPATH": root}

    @ray.remote
    def run(words: list[str]) -> tuple[int, str]:
        line = [sys.executable, "-P", "-m", "gpenlib", "notebooks", *words]
        done = subprocess.run(
            line, cwd=root, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    waiting = {}
    for cell in cells:
        words = [word for number in only for word in ("--only", number)]
        words += [word for name, value in cell.values.items() for word in ("-p", name, json.dumps(value))]
        gpus = int(cell.values.get("device", "cpu") != "cpu")
        waiting[run.options(num_gpus=gpus).remote(words)] = cell
    while waiting:
        (first,), _ = ray.wait(list(waiting))
        try:
            status, printed = ray.get(first)
        except ray.exceptions.RayError as error:  # a machine was lost
            status, printed = 1, str(error)
        # Behind what bars of progress left on the line
        message = re.split(r"(?:^|[\r\n])error: ", printed)[-1]
        yield waiting.pop(first), told(message) if status else ""


def told(error: str) -> str:
    """Return a message of several lines as one: how it begins, and how it ends."""
    first, *rest = error.strip().splitlines() or ["it ended without a message"]
    return cut(f"{first.partition(';')[0]}: {rest[-1].strip()}" if rest else first, 400)


def run_sweep(
    values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], only: Sequence[str] = (), engine: str = "",
    dry: bool = False, folder: Path | None = None,
) -> tuple[Path, int]:  # fmt: skip
    """Run every cell that is not finished; return the page that compares them, and how many failed.

    What is malformed or unknown is refused before anything runs. A cell that fails is a row with its message.
    With ``dry`` the cells are printed, and nothing runs.
    """
    if engine and find_spec(engine) is None:
        install = f"pip install '{engine}[data]'"
        raise NotebookError(f"--engine {engine}: it is not installed; {install}, or leave it out")
    here = folder or repository_root() / "notebooks"
    selected = find_notebooks(here, only)
    check_parameters(values, sorted(here.glob(PATTERN)))
    cells = open_cells(values, grid, selected)
    page = RunFolder.parse({"run": values.get("run", RunFolder().run)}).folder / SWEEP_PAGE
    results = {cell.name: cell.results() for cell in cells}
    labels = {cell.name: f"[{number}/{len(cells)}] {cell.name}" for number, cell in enumerate(cells, start=1)}
    for name, label in labels.items():
        if dry or results[name]:
            print(f"{label}  {'finished' if results[name] else 'to run'}", flush=True)
    if dry:
        return page, 0
    left = [cell for cell in cells if not results[cell.name]]
    failed: dict[str, str] = {}
    write_sweep_page(page, cells, results, failed)
    for cell, error in with_ray(left, only) if engine else in_turn(left, only, folder):
        if error:
            failed[cell.name] = error
        else:
            figures = figures_of(cell, selected) | {"at_once": bool(engine)}
            results[cell.name] = write_manifest(cell.folder, SWEEP, cell.key, figures)["metrics"]
        print(f"{labels[cell.name]}  {f'failed: {error}' if error else 'done'}", flush=True)
        write_sweep_page(page, cells, results, failed)
    return page, len(failed)


def compared(
    cells: Sequence[Cell], results: Mapping[str, Any], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return a row per cell; the loss is against fp32 of the same values and faces, where there is one."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        figures: dict[str, Any] = results[cell.name] or dict.fromkeys(("psnr", "faces", "psnr_fp32"))
        beside = next((c for c in cells if c.varied == cell.varied | {"dtype": REFERENCE}), cell)
        fp32, other = figures["psnr_fp32"], results[beside.name]
        if fp32 is None and other and (other["dtype"], other["faces"]) == (REFERENCE, figures["faces"]):
            fp32 = other["psnr"]
        index = cell.folder / "html" / "index.html"
        rows.append({
            **figures,
            "name": cell.name,
            "varied": cell.varied,
            "label": ", ".join(map(str, cell.varied.values())),
            "loss": None if fp32 is None or figures["psnr"] is None else fp32 - figures["psnr"],
            "status": "failed" if cell.name in failed else "done" if results[cell.name] else "not run",
            "error": failed.get(cell.name, ""),
            "page": f"../{cell.name}/html/index.html" if index.is_file() else "",
        })  # fmt: skip
    points = {(row["ms"], -row["psnr"]) for row in rows if row["psnr"] is not None}
    for row in rows:
        row["best"] = row["psnr"] is not None and not any(
            ms <= row["ms"] and worse <= -row["psnr"] for ms, worse in points - {(row["ms"], -row["psnr"])}
        )
    return rows


def write_sweep_page(
    page: Path, cells: Sequence[Cell], results: Mapping[str, Any], failed: Mapping[str, str]
) -> Path:
    """Write the page that compares the cells of a sweep, those that failed or did not run yet among them."""
    from gpenlib.errors.report import inline, templates
    from gpenlib.plots.compile import sweep_figure

    rows = compared(cells, results, failed)
    measured = sorted((row for row in rows if row["psnr"] is not None), key=lambda row: row["ms"])
    about = {"run": page.parent.name, "rows": rows, "names": list(cells[0].varied), "measured": measured}
    about |= {"reference": REFERENCE, "figure": inline(sweep_figure(measured)) if measured else ""}
    return write_text(page, templates().get_template("sweep.html.j2").render(about))
