"""HTML pages of executed notebooks and the index over them.

Everything on the index is read from the executed copies, so it can be rebuilt at any time.
"""

from __future__ import annotations

import argparse
import html
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillException
from traitlets import default

from gpenlib.files import choice_error, nearest, repository_root, resolve_path, write_atomically
from gpenlib.settings import RunSettings, SettingsError, parse_overrides, read_yaml

# ----------------------------------------------------------------------
# HTML pages of executed notebooks and the index over them.
#
# Everything on the index is read from the executed copies, so it can be rebuilt at any time.

PATTERN = "[0-9][0-9]_*.ipynb"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .5rem .8rem; border-bottom: 1px solid #ccc; }}
td.time {{ text-align: right; white-space: nowrap; }}
code {{ font-size: .85em; }}
.failed {{ color: #a33000; font-weight: bold; }}
</style></head><body>
<h1>{title}</h1>
<table><tr><th>Notebook</th><th>Status</th><th>Time</th><th>Parameters</th></tr>
{rows}
</table></body></html>
"""
ROW = (
    '<tr><td>{link}</td><td class="{css}">{status}</td><td class="time">{duration}</td>'
    "<td><code>{parameters}</code></td></tr>"
)


def write_page(notebook: Path, page: Path) -> None:
    """Convert an executed notebook to one HTML file with its figures inside."""
    exporter = HTMLExporter(template_name="lab", embed_images=True, require_js_url="")
    body, _ = exporter.from_filename(str(notebook))
    with write_atomically(page) as temporary:
        temporary.write_text(body, encoding="utf-8")


def write_index(run_folder: Path, selected: Iterable[Path], index: Path) -> None:
    """List every executed notebook of a run, and those of ``selected`` that did not run."""
    copies = {path.name: path for path in (run_folder / "notebooks").glob(PATTERN)}
    names = sorted({*copies, *(path.name for path in selected)})
    rows = [_row(copies[name]) if name in copies else _row_not_run(name) for name in names]
    text = PAGE.format(title=html.escape(f"GPEN workbench, run {run_folder.name}"), rows="\n".join(rows))
    with write_atomically(index) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _row(copy: Path) -> str:
    """Return the table row of an executed notebook; all of it is read from the copy."""
    notebook = nbformat.read(copy, as_version=4)
    record = notebook.metadata.get("papermill", {})
    passed = {name: repr(value) for name, value in record.get("parameters", {}).items()}
    defaults = {name: str(entry["default"]) for name, entry in papermill.inspect_notebook(copy).items()}
    used = {**defaults, **passed}
    failed, duration = bool(record.get("exception")), record.get("duration")
    return ROW.format(
        link=f'<a href="{html.escape(copy.stem)}.html">{html.escape(_title(notebook, copy.stem))}</a>',
        css="failed" if failed else "done",
        status="failed" if failed else "done",
        duration=f"{duration:.1f} s" if duration is not None else "",
        parameters=html.escape(", ".join(f"{name}={value}" for name, value in used.items())),
    )


def _row_not_run(name: str) -> str:
    return ROW.format(link=html.escape(Path(name).stem), css="", status="not run", duration="", parameters="")


def _title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """Return the first markdown heading."""
    for cell in notebook.cells:
        heading = re.search(r"^#+ +(.+)", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return heading[1].strip()
    return otherwise


# ----------------------------------------------------------------------
# Run the numbered notebooks in order: papermill, then HTML pages with an index.
#
# ``python -m gpenlib.notebooks --params params/demo.yaml [--only 04] [-p dtype int8]``
#
# Unlike papermill itself it refuses parameters that no notebook knows, and runs the kernel with its own
# Python, whatever kernels are registered on the machine.

ERROR_LINES = 15


class NotebookError(RuntimeError):
    """A notebook that is malformed or failed, or parameters that no notebook takes."""


class SamePythonSpecs(KernelSpecManager):
    """Offers one kernel: the running Python. A registered ``python3`` may belong to another environment."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the specification of a kernel with ``sys.executable``."""
        return KernelSpec(**get_kernel_dict())


class SamePythonKernel(AsyncKernelManager):
    """Kernel manager that starts ``sys.executable``."""

    @default("kernel_spec_manager")
    def _own_specs(self) -> KernelSpecManager:
        return SamePythonSpecs(parent=self)

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"  # otherwise the kernel warns of an open TCP port in every notebook


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of ``folder`` in order: all, or those whose number is in ``only``.

    Raises
    ------
    NotebookError
        If there are none, or ``only`` names a number that is not there.
    """
    present = sorted(folder.glob(PATTERN))
    if not present:
        raise NotebookError(f"{folder}: no notebooks named NN_name.ipynb")
    numbers = sorted({path.name[:2] for path in present})
    unknown = [number for number in only if number not in numbers]
    if unknown:
        raise NotebookError(choice_error("notebook number", unknown[0], numbers))
    return [path for path in present if not only or path.name[:2] in only]


def declared_parameters(notebook: Path) -> dict[str, str]:
    """Return the parameters of a notebook with their defaults as source text.

    Raises
    ------
    NotebookError
        If it is not a readable notebook with exactly one code cell tagged ``parameters``.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [c for c in cells if "parameters" in c.metadata.get("tags", ()) and c.cell_type == "code"]
        if len(tagged) != 1:
            raise NotebookError(
                f"{notebook}: {len(tagged)} code cells tagged 'parameters'; exactly one is needed"
            )
        found = papermill.inspect_notebook(notebook)
    except (ValueError, nbformat.reader.NotJSONError) as error:  # no kernel in the metadata, or not JSON
        raise NotebookError(f"{notebook}: not a notebook that papermill can run ({error})") from error
    return {name: str(entry["default"]) for name, entry in found.items()}


def check_parameters(values: Mapping[str, Any], notebooks: Iterable[Path]) -> None:
    """Refuse values that no notebook takes, or that a parameters cell cannot hold.

    Raises
    ------
    NotebookError
        Naming the key, and the nearest names that exist.
    """
    known = sorted({name for path in notebooks for name in declared_parameters(path)})
    for name, value in values.items():
        if name not in known:
            close = nearest(name, known) or known
            raise NotebookError(
                f"unknown parameter {name!r}: no notebook has it; nearest: {', '.join(close)}"
            )
        if isinstance(value, Mapping):
            raise NotebookError(f"parameter {name!r}: {value!r} is a mapping; notebooks take plain values")


def run_notebooks(
    values: Mapping[str, Any], only: Sequence[str] = (), folder: Path | None = None
) -> tuple[Path, Path]:
    """Execute notebooks in order and write their HTML pages and the index.

    Parameters
    ----------
    values : mapping
        Parameters by name; each notebook receives those that it declares. ``run`` names the run folder.
    only : sequence of str
        Numbers of the notebooks to run, such as ``["04"]``. Default: all.
    folder : Path, optional
        Where the notebooks lie. Default: ``notebooks`` of the repository.

    Returns
    -------
    (Path, Path)
        The folder of the executed notebooks and the index page.

    Raises
    ------
    NotebookError
        For malformed notebooks or unknown parameters, before anything runs; or when a notebook fails: its
        partial copy is kept, and the later ones are not run.
    SettingsError
        If ``run`` is not a plain folder name.
    """
    folder = folder or repository_root() / "notebooks"
    selected = find_notebooks(folder, only)
    check_parameters(values, sorted(folder.glob(PATTERN)))
    run_folder = resolve_path(_run_settings(values).folder)
    executed, pages = run_folder / "notebooks", run_folder / "html"
    executed.mkdir(parents=True, exist_ok=True)
    for source in selected:  # what an earlier run left must not pass for a result of this one
        (executed / source.name).unlink(missing_ok=True)
        (pages / f"{source.stem}.html").unlink(missing_ok=True)
    index = pages / "index.html"
    for number, source in enumerate(selected, start=1):
        declared = declared_parameters(source)
        copy = executed / source.name
        start = time.monotonic()
        try:
            execute(source, copy, {name: value for name, value in values.items() if name in declared})
        finally:
            if copy.is_file():
                write_page(copy, pages / f"{source.stem}.html")
            write_index(run_folder, selected, index)
        print(f"[{number}/{len(selected)}] {source.stem}  {time.monotonic() - start:.1f} s", flush=True)
    return executed, index


def execute(source: Path, copy: Path, values: Mapping[str, Any]) -> None:
    """Execute one notebook into ``copy``, which is saved after every cell.

    Raises
    ------
    NotebookError
        If a cell fails or the kernel dies; with the path of the partial copy and the end of the error.
    """
    try:
        papermill.execute_notebook(
            source,
            copy,
            parameters=dict(values),
            kernel_name="python3",
            language="python",
            cwd=repository_root(),
            kernel_manager_class=SamePythonKernel,
            progress_bar={"desc": source.stem, "leave": False},
        )
    except BaseException as error:
        _mark_failed(copy)
        if not isinstance(error, (PapermillException, RuntimeError, TimeoutError)):
            raise
        ending = "\n".join(str(error).strip().splitlines()[-ERROR_LINES:])
        raise NotebookError(f"{source.stem} failed; as far as it came: {copy}\n{ending}") from error


def _mark_failed(copy: Path) -> None:
    """Record the failure in the copy; papermill does so for exceptions in cells, not for a dead kernel."""
    if copy.is_file():
        notebook = nbformat.read(copy, as_version=4)
        notebook.metadata.setdefault("papermill", {})["exception"] = True
        nbformat.write(notebook, copy)


def _run_settings(values: Mapping[str, Any]) -> RunSettings:
    """Return the settings that name the run folder, as the stages will understand them."""
    return RunSettings.parse({name: values[name] for name in ("run",) if name in values}, "parameters")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all notebooks, or those asked for; print where the results lie."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib.notebooks", description=main.__doc__)
    parser.add_argument("--params", required=True, help="YAML file of parameters, from the repository root")
    parser.add_argument("--only", action="append", default=[], metavar="NN", help="this one (repeatable)")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="replace one parameter"
    )
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        values = read_yaml(resolve_path(options.params))
        values |= parse_overrides([f"{key}={value}" for key, value in options.p])
        executed, index = run_notebooks(values, options.only)
    except (NotebookError, SettingsError) as error:
        print(f"error: {error}")
        return 1
    print(f"executed notebooks: {executed}\nHTML pages:         {index}")
    report = executed.parent / "report.html"
    if report.is_file():
        print(f"report:             {report}")
    print(f"total:              {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
