"""Run the numbered notebooks in order: papermill, then HTML pages with an index.

Unlike papermill itself it refuses parameters that no notebook knows, and runs the kernel with its own Python,
whatever kernels are registered on the machine. All that the index shows is read from the executed copies.
"""

from __future__ import annotations

import argparse
import html
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillException
from traitlets import default

from gpenlib.files import choice_error, locked, nearest, repository_root, resolve_path, shown, write_text
from gpenlib.jobs import command
from gpenlib.settings import RunFolder, parse_overrides, read_yaml

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
    '<tr><td>{link}</td><td class="{status}">{status}</td><td class="time">{duration}</td>'
    "<td><code>{parameters}</code></td></tr>"
)


class NotebookError(RuntimeError):
    """A notebook that is malformed or failed, or parameters that no notebook takes."""


class SamePythonKernel(AsyncKernelManager):
    """Starts the running Python; a registered ``python3`` may belong to another environment."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification of a kernel with ``sys.executable``."""
        # Without what a kernel logs when Ctrl-C ends it in the middle of a cell
        return KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))

    @default("transport_encryption")
    def _encrypt(self) -> str:
        return "auto"  # otherwise the kernel warns of an open TCP port in every notebook


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the numbered notebooks of ``folder`` in order: all, or those whose number is in ``only``."""
    present = sorted(folder.glob(PATTERN))
    if not present:
        raise NotebookError(f"{folder}: no notebooks named NN_name.ipynb")
    numbers = sorted({path.name[:2] for path in present})
    if unknown := [number for number in only if number not in numbers]:
        raise NotebookError(choice_error("notebook number", unknown[0], numbers))
    return [path for path in present if not only or path.name[:2] in only]


def declared_parameters(notebook: Path) -> dict[str, str]:
    """Return the parameters of the one code cell tagged ``parameters``, with defaults as source text."""
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [c for c in cells if "parameters" in c.metadata.get("tags", ()) and c.cell_type == "code"]
        if len(tagged) != 1:
            raise NotebookError(f"{notebook}: {len(tagged)} code cells tagged 'parameters'; needed is one")
        entries = papermill.inspect_notebook(notebook)
    except (ValueError, nbformat.reader.NotJSONError) as error:  # no kernel in the metadata, or not JSON
        raise NotebookError(f"{notebook}: not a notebook that papermill can run ({error})") from error
    return {name: str(entry["default"]) for name, entry in entries.items()}


def check_parameters(values: Mapping[str, Any], notebooks: Iterable[Path]) -> None:
    """Refuse values that no notebook takes, with the nearest names, or that a parameters cell cannot hold."""
    known = sorted({name for path in notebooks for name in declared_parameters(path)})
    for name, value in values.items():
        if name not in known:
            close = ", ".join(nearest(name, known) or known)
            raise NotebookError(f"unknown parameter {shown(name)}: no notebook has it; nearest: {close}")
        if isinstance(value, Mapping):
            given = f"parameter {name!r}: {shown(value)}"
            raise NotebookError(f"{given} is a mapping; notebooks take plain values")


def run_notebooks(
    values: Mapping[str, Any], only: Sequence[str] = (), folder: Path | None = None
) -> tuple[Path, Path]:
    """Execute notebooks in order, all or those numbered ``only``; return their folder and the index page.

    Each receives the ``values`` that it declares; ``run`` names the run folder. What is malformed or unknown
    is refused before anything runs. Of a notebook that fails the partial copy is kept, and no later one runs.
    """
    folder = folder or repository_root() / "notebooks"
    selected = find_notebooks(folder, only)
    check_parameters(values, sorted(folder.glob(PATTERN)))
    run = RunFolder.parse({name: values[name] for name in ("run",) if name in values}, "parameters")
    run_folder = resolve_path(run.folder)
    executed, pages = run_folder / "notebooks", run_folder / "html"
    index = pages / "index.html"
    exporter = HTMLExporter(template_name="lab", embed_images=True, require_js_url="")  # figures inside
    with alone_in(run_folder):
        executed.mkdir(parents=True, exist_ok=True)
        for source in selected:  # what an earlier run left must not pass for a result of this one
            (executed / source.name).unlink(missing_ok=True)
            (pages / f"{source.stem}.html").unlink(missing_ok=True)
        for number, source in enumerate(selected, start=1):
            declared, copy = declared_parameters(source), executed / source.name
            start = time.monotonic()
            try:
                execute(source, copy, {name: value for name, value in values.items() if name in declared})
            finally:
                if read_copy(copy) is not None:
                    write_text(pages / f"{source.stem}.html", exporter.from_filename(str(copy))[0])
                write_index(run_folder, selected, index)
            print(f"[{number}/{len(selected)}] {source.stem}  {time.monotonic() - start:.1f} s", flush=True)
    return executed, index


def alone_in(run_folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from the notebooks of a run; wait, and say so, where one is at them."""
    text = f"waiting for another process, which runs the notebooks of {run_folder}"
    return locked(run_folder / ".locks" / "notebooks.lock", lambda: print(text, flush=True))


def execute(source: Path, copy: Path, values: Mapping[str, Any]) -> None:
    """Execute one notebook into ``copy``, which is saved after every cell and says when it failed."""
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
        notebook = read_copy(copy)
        if notebook is not None:  # papermill notes exceptions in cells, not a kernel that died
            notebook.metadata.setdefault("papermill", {})["exception"] = True
            write_text(copy, nbformat.writes(notebook))
        if isinstance(error, KeyboardInterrupt) or getattr(error, "ename", "") == "KeyboardInterrupt":
            logging.getLogger("asyncio").disabled = True  # it would tell of tasks that the kernel left
            raise KeyboardInterrupt from error  # also where the kernel was told first
        if not isinstance(error, (PapermillException, RuntimeError, TimeoutError)):
            raise
        ending = "\n".join(str(error).strip().splitlines()[-15:])
        raise NotebookError(f"{source.stem} failed; as far as it came: {copy}\n{ending}") from error


def read_copy(copy: Path) -> nbformat.NotebookNode | None:
    """Return an executed copy; None if there is none, or a killed process left half of one."""
    if not copy.is_file():  # a pipe would be waited for
        return None
    try:
        return nbformat.read(copy, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return None


def write_index(run_folder: Path, selected: Iterable[Path], index: Path) -> None:
    """List every executed notebook of a run, and those of ``selected`` that did not run."""
    executed = run_folder / "notebooks"
    names = sorted({path.name for path in (*executed.glob(PATTERN), *selected)})
    rows = "\n".join(index_row(executed / name) for name in names)
    title = html.escape(f"GPEN workbench, run {run_folder.name}")
    write_text(index, PAGE.format(title=title, rows=rows))


def index_row(copy: Path) -> str:
    """Return the table row of a notebook; all of it is read from the executed copy."""
    notebook, name = read_copy(copy), html.escape(copy.stem)
    if notebook is None:
        status = "failed" if copy.is_file() else "not run"
        return ROW.format(link=name, status=status, duration="", parameters="")
    record = notebook.metadata.get("papermill", {})
    values = {key: str(entry["default"]) for key, entry in papermill.inspect_notebook(copy).items()}
    values |= {key: repr(value) for key, value in record.get("parameters", {}).items()}
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^#+ +(.+)", markdown, re.MULTILINE)
    title = html.escape(heading[1].strip()) if heading else name
    return ROW.format(
        link=f'<a href="{name}.html">{title}</a>',
        status="failed" if record.get("exception") else "done",
        duration=f"{record['duration']:.1f} s" if record.get("duration") is not None else "",
        parameters=html.escape(", ".join(f"{key}={value}" for key, value in values.items())),
    )


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run all notebooks, or those asked for; print where the results lie."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib notebooks", description=main.__doc__)
    parser.add_argument("--params", required=True, help="YAML file of parameters, from the repository root")
    parser.add_argument("--only", action="append", default=[], metavar="NN", help="this one (repeatable)")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="replace one parameter"
    )
    options = parser.parse_args(arguments)
    start = time.monotonic()
    values = read_yaml(resolve_path(options.params))
    values |= parse_overrides([f"{key}={value}" for key, value in options.p])
    executed, index = run_notebooks(values, options.only)
    print(f"executed notebooks: {executed}\nHTML pages:         {index}")
    if (report := executed.parent / "report.html").is_file():
        print(f"report:             {report}")
    print(f"total:              {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
