"""Fill the template: figures as PNG inside the page, every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gpenlib.errors.costs import pareto_rows
from gpenlib.errors.gallery import FaceErrors
from gpenlib.errors.recommend import Recommendation
from gpenlib.plots.errors import drops_figure, worst_figure
from gpenlib.plots.groups import groups_figure
from gpenlib.plots.quantisation import pareto_figure
from gpenlib.report import tables
from gpenlib.run import write_atomically

DPI = 110
TEMPLATE = "report.html.j2"


def write_report(
    path: Path,
    results: Mapping[str, Any],
    recommendation: Recommendation,
    gallery: tuple[str, Sequence[FaceErrors]],
    command: str,
    comparison: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page of one run.

    It needs nothing else: no network, no other file, no script. The same results give the same text.

    Parameters
    ----------
    path : Path
    results : mapping
        Of 05_errors: ``table``, ``rows``, ``groups``, ``latency``, ``facts``, ``chroma_baseline``.
    recommendation : Recommendation
    gallery : (str, sequence of FaceErrors)
        A dtype other than fp32, and the faces on which it loses most, the worst first.
    command : str
        What repeats the run.
    comparison : mapping, optional
        ``rows`` and ``runs`` of a comparison with other runs.

    Returns
    -------
    Path
    """
    dtype, faces = gallery
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        facts=results["facts"],
        chroma_baseline=results["chroma_baseline"],
        run_facts=tables.run_facts(results),
        recommendation=recommendation,
        glance=tables.glance(results["table"]),
        drops=tables.drops(results["table"]),
        execution=tables.execution(results["table"]),
        baselines=tables.baselines(results["table"], results["facts"]["task"]),
        repeats=len(results["latency"][0]["times_ms"]),
        gallery_dtype=dtype,
        gallery=[(face.name, face.role) for face in faces],
        comparison=tables.comparison(comparison["rows"]) if comparison else None,
        compared=tables.compared_runs(comparison["runs"]) if comparison else None,
        command=command,
        figures={
            "pareto": inline(pareto_figure(pareto_rows(results["table"], results["latency"]))),
            "drops": inline(drops_figure(results["rows"], results["table"])),
            "groups": inline(groups_figure(results["groups"])),
            "worst": inline(worst_figure(faces, dtype)),
        },
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def inline(figure: Figure) -> str:
    """Return a figure as a PNG in a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
