"""HTML pages of executed notebooks and the index over them.

Everything on the index is read from the executed copies, so it can be rebuilt at any time.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter

from gpenlib.run import write_atomically

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
