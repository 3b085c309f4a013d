"""Run the numbered notebooks in order: papermill, then HTML pages with an index.

Unlike papermill itself it refuses parameters that no notebook knows, and runs the kernel with its own Python,
whatever kernels are registered on the machine. All that the index shows is read from the executed copies.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
import numpy as np
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillException
from PIL import Image as Pillow
from PIL import ImageOps
from traitlets import default

from gpenlib.files import (
    choice_error,
    locked,
    nearest,
    read_json,
    repository_root,
    resolve_path,
    shown,
    write_text,
)
from gpenlib.images import data_uri
from gpenlib.jobs import command
from gpenlib.settings import RunFolder, parse_overrides, read_yaml

PATTERN = "[0-9][0-9]_*.ipynb"


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
    told = f"waiting for another process, which runs the notebooks of {run_folder}"
    with locked(run_folder / ".locks" / "notebooks.lock", lambda: print(told, flush=True)):
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
                index = write_pages(run_folder, selected, source.name)
            print(f"[{number}/{len(selected)}] {source.stem}  {time.monotonic() - start:.1f} s", flush=True)
    return executed, index


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
        interrupted = "KeyboardInterrupt" in (type(error).__name__, getattr(error, "ename", ""))
        notebook = read_copy(copy)
        if notebook is not None:  # papermill notes exceptions in cells, not a kernel that died
            notebook.metadata.setdefault("papermill", {}).update(exception=True, interrupted=interrupted)
            write_text(copy, nbformat.writes(notebook))
        if interrupted:
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


def formula(display: str, tex: str) -> str:
    """Return a formula as MathML, or its source where the converter does not know what it holds."""
    mathml = "\\"
    with suppress(Exception):  # whatever it stumbles over; the source can always be read
        mathml = latex2mathml.converter.convert(tex, display=display)
    return f"<code>{html.escape(tex)}</code>" if "\\" in mathml else mathml  # commands are left as they are


def markdown(source: str) -> str:
    """Return Markdown as HTML, which needs neither scripts nor a network for its formulas."""
    renderer = IPythonRenderer(escape=False)
    vars(renderer).update(inline_math=partial(formula, "inline"), block_math=partial(formula, "block"))
    return str(MarkdownWithMath(renderer=renderer).render(source))


def headings(page: str) -> list[tuple[str, str, str]]:
    """Return level, anchor and HTML of the headings in a page that was made from Markdown."""
    return re.findall(r'<h([1-6]) id="([^"]*)">(.*?)<a class="anchor-link"', page, re.DOTALL)


def without_places(stderr: str) -> str:
    """Return what a kernel wrote, its warnings without the file, line and source from which they came."""
    return re.sub(r"(?m)^.*:\d+: (\w*Warning: .*)\n  .*$", r"\1", stderr)


def thumbnail(png: str) -> str:
    """Return a figure, made small, as a data URI."""
    figure = Pillow.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    return data_uri(np.asarray(ImageOps.contain(figure, (480, 480))))


def write_pages(run_folder: Path, selected: Iterable[Path], name: str) -> Path:
    """Write a notebook's page, its neighbours', which link to it, and the index also of what did not run."""
    from gpenlib.errors.report import templates  # with matplotlib, which a refused command need not wait for

    environment = templates()
    filters = (markdown, headings, thumbnail, ansi2html, without_places)
    environment.filters |= {each.__name__: each for each in filters}
    environment.filters["highlight"] = Highlight2HTML(pygments_lexer="ipython3")
    executed, folder = run_folder / "notebooks", run_folder / "html"
    names = sorted({path.name for path in (*executed.glob(PATTERN), *selected)})
    pages = [describe(executed / each) for each in names]
    linked = [None, *(page for page in pages if page["notebook"]), None]
    for before, page, after in zip(linked, linked[1:], linked[2:], strict=False):
        if page and Path(name).stem in [each["stem"] for each in (before, page, after) if each]:
            ways = {"page": page, "before": before, "after": after, "run": run_folder.name}
            text = environment.get_template("notebook.html.j2").render(ways)
            write_text(folder / f"{page['stem']}.html", text)
    about = {"pages": pages, "run": run_folder.name, "recommendation": recommendation(run_folder)}
    return write_text(folder / "index.html", environment.get_template("index.html.j2").render(about))


def describe(copy: Path) -> dict[str, Any]:
    """Return an executed copy, how it ended and its parameters."""
    notebook, values = read_copy(copy), {}
    record = notebook.metadata.get("papermill", {}) if notebook else {}
    if notebook:
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        values = {key: str(entry["default"]) for key, entry in papermill.inspect_notebook(copy).items()}
        values |= {key: repr(value) for key, value in record.get("parameters", {}).items()}
    if not notebook:
        status = "failed" if copy.is_file() else "not run"
    elif record.get("interrupted"):
        status = "stopped"
    else:
        status = "failed" if record.get("exception") else "done"
    return {"stem": copy.stem, "notebook": notebook, "status": status, "parameters": values}


def recommendation(run_folder: Path) -> dict[str, Any] | None:
    """Return what the report of a run recommends, and whether its faces were made here; None without one."""
    try:
        metrics = read_json(run_folder / "05_report" / "manifest.json")["metrics"]
        facts = read_json(run_folder / "05_errors" / "results.json")["facts"]
        return {"made_here": facts["made_here"], **metrics["recommendation"]}
    except (OSError, ValueError, LookupError, TypeError):  # not there, or edited
        return None


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run all notebooks, or those asked for, once or for a grid of values; print where the results lie."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib notebooks", description=main.__doc__)
    parser.add_argument("--params", help="YAML file of parameters, from the repository root")
    parser.add_argument("--only", action="append", default=[], metavar="NN", help="this one (repeatable)")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="replace one parameter"
    )
    add = parser.add_argument
    add("--sweep", nargs="+", metavar="KEY=VALUE,...", help="a run for every combination of these values")
    add("--dry-run", action="store_true", help="with --sweep: print the runs, and run none")
    add("--engine", choices=("ray",), help="with --sweep: several at a time, as Ray places them")
    options = parser.parse_args(arguments)
    if not options.sweep and (options.dry_run or options.engine):
        parser.error("--dry-run and --engine go with --sweep")
    start = time.monotonic()
    values = read_yaml(resolve_path(options.params)) if options.params else {}
    values |= parse_overrides([f"{k}={v}" for k, v in options.p])
    if options.sweep:
        from gpenlib.sweep import parse_grid, run_sweep

        grid = parse_grid(options.sweep)
        page, failed = run_sweep(values, grid, options.only, options.engine or "", options.dry_run)
        if not options.dry_run:
            print(f"comparison: {page}\ntotal:      {time.monotonic() - start:.0f} s")
        return int(failed > 0)
    executed, index = run_notebooks(values, options.only)
    print(f"executed notebooks: {executed}\nHTML pages:         {index}")
    if (report := executed.parent / "report.html").is_file():
        print(f"report:             {report}")
    print(f"total:              {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
