"""The page ``report.html``: tables and figures of one run of 05_errors in a file that needs nothing else.

The template lays out rows of ``results.json``; every number on the page is one of them, rounded.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gpenlib.data.tasks import baseline_name
from gpenlib.errors import compare
from gpenlib.files import write_text
from gpenlib.images import Image
from gpenlib.plots import face_title, minus, signed
from gpenlib.plots.before_after import before_after
from gpenlib.plots.compile import pareto_figure
from gpenlib.plots.errors import LOSS_DIGITS, SCORES, drops_figure, groups_figure, worst_figure
from gpenlib.plots.infer import merged_figure
from gpenlib.settings import INCEPTION, REFERENCE, RunSettings

Row = Mapping[str, Any]

DIGITS = {"psnr": 3, "ssim": 4, "delta_e2000": 3, "chroma_error": 3}
SHOWN_SCORE = "psnr"  # of the groups
NOTHING = "–"
NOTEBOOK_05 = (
    "run", "weights", "key", "task", "data_dir", "input_dir", "dataset_size", "dtypes", "backend", "device",
    "batch_size", "calib_dir", "calib_size", "worst", "lpips_weights", "features_file", "runs",
    "max_drop_db", "repeats", "layer_faces", "build", "calibrate_mode", "most_megapixels",
)  # fmt: skip


def write_report(
    path: Path,
    results: Mapping[str, Any],
    recommendation: compare.Recommendation,
    gallery: tuple[str, Sequence[compare.FaceErrors]],
    command: str,
    comparison: Mapping[str, Any] | None = None,
    photographs: Sequence[str] = (),
    budget: float = 0.0,  # loss in dB that is allowed; 0 marks none
) -> Path:
    """Write a run's page; ``gallery`` is a dtype, and photographs and the faces on which it loses most."""
    table, (dtype, faces) = results["table"], gallery
    pareto = compare.pareto_rows(table, results["latency"])
    page = templates().get_template("report.html.j2")
    text = page.render(
        facts=results["facts"],
        filename=lambda path: Path(path).name,
        chroma_baseline=results["chroma_baseline"],
        recommendation=recommendation,
        confidence=f"{compare.CONFIDENCE:.0%}",
        reference=REFERENCE,
        scores=SCORES,
        digits=DIGITS,
        loss_digits=LOSS_DIGITS,
        table=table,
        others=[row for row in table if row["dtype"] != REFERENCE],
        pareto=pareto,
        repeats=len(results["latency"][0]["times_ms"]),
        baselines=baselines(table, results["facts"]["task"]),
        traits=compare.TRAITS,
        groups=[row for row in results["groups"] if row["score"] == SHOWN_SCORE],
        copies=compare.copies(results["rows"]),
        left_out=compare.left_out(results["rows"]),
        groups_note=compare.groups_note(results["groups"], results["rows"]),
        trends_note=compare.trends_note(results["trends"]),
        budget=f"{budget:g}" if budget else "",
        gallery_dtype=dtype,
        gallery=faces,
        photographs=photographs,
        face_title=partial(face_title, photographs=photographs, length=99),
        wipe=before_after(wiped(faces, dtype, photographs), REFERENCE, dtype).html,
        comparison=later_runs(comparison["rows"]) if comparison else None,
        compared=comparison["runs"] if comparison else None,
        command=command,
        figures={
            "pareto": inline(pareto_figure(pareto, recommendation.dtype, budget)),
            "drops": inline(drops_figure(results["rows"], table)),
            "groups": inline(groups_figure(results["groups"], SHOWN_SCORE)),
            "worst": inline(worst_figure(faces, dtype, photographs)),
        },
    )
    return write_text(path, text)


def templates() -> jinja2.Environment:
    """Return what fills in the templates of all pages, with the filters for figures."""
    folders = Path(__file__).parent, Path(__file__).parents[1] / "pages"  # where the style of all pages is
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"fixed": fixed, "signed": signed, "loss": loss}
    return environment


def scores_page(summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the page of scores that were merged from parts: it takes the sums alone, however many faces."""
    page = templates().get_template("scores.html.j2")
    return page.render(
        summary=summary,
        about=about,
        confidence=f"{compare.CONFIDENCE:.0%}",
        digits=DIGITS,
        histograms=inline(merged_figure(summary["figures"])),
    )


def gallery_dtype(table: Sequence[Row], recommended: str | None) -> str:
    """Return whose worst faces to show: the recommended dtype's, or else those of the fastest but fp32."""
    others = {row["dtype"]: row["latency_ms"] for row in table if row["dtype"] != REFERENCE}
    return recommended if recommended and recommended in others else min(others, key=others.__getitem__)


def wiped(
    faces: Sequence[compare.FaceErrors], dtype: str, photographs: Sequence[str] = ()
) -> dict[str, dict[str, Image]]:
    """Return the pictures to wipe between, by face and label: input and truth only where they were read."""
    pictures = [
        {"input": face.source, REFERENCE: face.expected, dtype: face.outputs[dtype], "truth": face.truth}
        for face in faces
    ]
    return {
        f"{face_title(face.name, photographs, 99)} ({face.role})": {
            label: image for label, image in row.items() if image is not None
        }
        for face, row in zip(faces, pictures, strict=True)
    }


def inline(figure: Figure) -> str:
    """Return a figure as a PNG in a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def baselines(table: Sequence[Row], task: str = "color") -> dict[str, Any]:
    """Return fp32's scores beside those of doing nothing and, for colouring, of one even colour."""
    fp32 = next(row for row in table if row["dtype"] == REFERENCE)
    most = max(table[1:] or table, key=lambda row: row["psnr_drop"])
    answers = {baseline_name(task): "_input"}
    answers |= {"even colour": "_chroma_baseline"} if task == "color" else {}
    gains = {name: signed(fp32["psnr"] - fp32[f"psnr{end}"], 3) for name, end in answers.items()}
    rows = [
        [label, *(fixed(fp32[f"{score}{end}"], DIGITS[score]) for score in SCORES)]
        for label, end in (answers | {"network, fp32": ""}).items()
    ]
    told = f"PSNR of {REFERENCE}: {', '.join(f'{gain} dB over {name}' for name, gain in gains.items())}; the "
    told += f"largest mean loss of a precision is {signed(most['psnr_drop'], 3)} dB ({most['dtype']})."
    return {"head": ["answer", *SCORES.values()], "rows": rows, "told": told}


def later_runs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of the later runs with the first one's value beside theirs."""
    run = rows[0]["run"]
    first = {(row["dtype"], row["score"]): row["value"] for row in rows if row["run"] == run}
    return [{**row, "first": first[row["dtype"], row["score"]]} for row in rows if row["run"] != run]


def loss(row: Row, score: str) -> str:
    """Return a loss with its interval in one cell."""
    value, low, high = (
        signed(row[f"{score}_drop{end}"], LOSS_DIGITS[score]) for end in ("", "_low", "_high")
    )
    return f"{value} (no interval)" if low == NOTHING else f"{value} ({low} to {high})"


def fixed(value: float | None, digits: int) -> str:
    """Return a figure, or a dash."""
    return NOTHING if value is None else minus(f"{value:.{digits}f}")


def papermill_command(settings: RunSettings) -> str:
    """Return the command that repeats a run of notebook 05; defaults are left out."""
    changed = {
        name: value
        for name, value in settings.model_dump(exclude_defaults=True).items()
        if value is not None and not (isinstance(value, tuple) and not value)
    }
    if changed.pop("features_are_inception", False):
        changed["features_file"] = f"{INCEPTION}{changed['features_file']}"
    words = ["papermill", "notebooks/05_errors.ipynb", "out.ipynb"]
    for name in NOTEBOOK_05:
        if name in changed:
            value = changed.pop(name)
            words += ["-p", name, ",".join(value) if isinstance(value, tuple) else str(value)]
    # What the notebook has no parameter for and that changes figures.
    extra = f"  # and, set in Python: seed={changed['seed']}" if "seed" in changed else ""
    return shlex.join(words) + extra
