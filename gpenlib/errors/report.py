"""Choose faces whose errors are worth looking at, and get their outputs and error maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gpenlib.data.tasks import baseline_name
from gpenlib.errors.compare import REFERENCE, FaceErrors, Recommendation, pareto_rows
from gpenlib.files import write_atomically
from gpenlib.plots.compile import pareto_figure
from gpenlib.plots.errors import drops_figure, groups_figure, worst_figure

# ----------------------------------------------------------------------
# Tables of the page: rows in, rows of text out. Every figure is one of ``summary.csv``, rounded.

Row = Mapping[str, Any]
Table = dict[str, Any]  # "head": names of columns; "rows": a list of cells each
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000", "chroma_error": "chroma error"}
DIGITS = {"psnr": 3, "ssim": 4, "delta_e2000": 3, "chroma_error": 3}
NOTHING = "–"


def run_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was run on what, as pairs of name and text."""
    facts = results["facts"]
    return [
        ("weights", f"{Path(facts['weights']).name} (digest {facts['weights_digest'][:16]})"),
        ("task", facts["task"]),
        ("faces", f"{facts['images']}, {facts['data']}"),
        ("sizes", f"{facts['in_size']} px in, {facts['out_size']} px out"),
        ("calibration", facts["calibration"]),
        ("device", f"{facts['device']}, faces per call: {facts['batch_size']}"),
    ]


def glance(table: Sequence[Row]) -> Table:
    """Return quality, size and time of every dtype."""
    head = ["precision", "PSNR [dB]", "lost against fp32 [dB]", "SSIM", "SSIM lost", "ΔE 2000",
            "colour shift [ΔE]", "size [MiB]", "ms per image", "10th to 90th perc."]  # fmt: skip
    rows = [
        [
            row["dtype"], fixed(row["psnr"], 3), drop_cell(row, "psnr"), fixed(row["ssim"], 4),
            _but_reference(row, signed(row["ssim_drop"], 4)), fixed(row["delta_e2000"], 2),
            _but_reference(row, fixed(row["colour_shift_to_fp32"], 2)), fixed(row["model_mib"], 1),
            fixed(row["latency_ms"], 1), f"{row['latency_p10_ms']:.1f} to {row['latency_p90_ms']:.1f}",
        ]
        for row in table
    ]  # fmt: skip
    return {"head": head, "rows": rows}


def drops(table: Sequence[Row]) -> Table:
    """Return what every dtype loses in every score, with interval and verdict."""
    rows = []
    for row in table:
        if row["dtype"] == REFERENCE:
            continue
        for score, name in SCORES.items():
            low, high = row[f"{score}_drop_low"], row[f"{score}_drop_high"]
            digits = DIGITS[score] + 1
            rows.append(
                [row["dtype"], name, signed(row[f"{score}_drop"], digits), signed(low, digits),
                 signed(high, digits), row[f"{score}_verdict"]]
            )  # fmt: skip
    return {"head": ["precision", "score", "mean loss", "from", "to", "verdict"], "rows": rows}


def execution(table: Sequence[Row]) -> Table:
    """Return what each dtype was computed in, and why by that backend."""
    rows = [[row["dtype"], row["executed_precision"], row["backend"], row["backend_reason"]] for row in table]
    return {"head": ["precision", "executed as", "backend", "why this backend"], "rows": rows}


def baselines(table: Sequence[Row], task: str = "color") -> Table:
    """Return fp32's scores beside those of doing nothing and, for colouring, of one even colour."""
    fp32 = next(row for row in table if row["dtype"] == REFERENCE)
    answers = {baseline_name(task): "_input"}
    answers |= {"even colour": "_chroma_baseline"} if task == "color" else {}
    answers |= {"network, fp32": ""}
    rows = [
        [label, *(fixed(fp32[f"{score}{suffix}"], DIGITS[score]) for score in SCORES)]
        for label, suffix in answers.items()
    ]
    return {"head": ["answer", *SCORES.values()], "rows": rows}


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return the scores of the later runs beside the first one's, and the differences."""
    head = [
        "precision",
        "score",
        "run",
        "faces",
        "first run",
        "this run",
        "difference",
        "from",
        "to",
        "verdict",
    ]
    first = {(row["dtype"], row["score"]): row["value"] for row in rows if row["run"] == rows[0]["run"]}
    cells = []
    for row in rows:
        if row["run"] == rows[0]["run"]:
            continue
        digits = DIGITS[row["score"]]
        images = NOTHING if row["images"] is None else str(row["images"])
        values = [fixed(value, digits) for value in (first[row["dtype"], row["score"]], row["value"])]
        differences = [signed(row[name], digits + 1) for name in ("difference", "low", "high")]
        label = [row["dtype"], SCORES[row["score"]], row["run"], images]
        cells.append([*label, *values, *differences, row["verdict"]])
    return {"head": head, "rows": cells}


def compared_runs(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return what each of the compared runs ran on what."""
    rows = [
        [name, Path(facts["weights"]).name, f"{facts['images']}, {facts['data']}", facts["calibration"]]
        for name, facts in runs.items()
    ]
    return {"head": ["run", "weights", "faces", "calibration"], "rows": rows}


def drop_cell(row: Row, score: str) -> str:
    """Return a loss with its interval in one cell."""
    if row["dtype"] == REFERENCE:
        return NOTHING
    value = signed(row[f"{score}_drop"], DIGITS[score])
    low, high = row[f"{score}_drop_low"], row[f"{score}_drop_high"]
    if low is None:
        return f"{value} (no interval)"
    return f"{value} ({signed(low, DIGITS[score])} to {signed(high, DIGITS[score])})"


def fixed(value: float | None, digits: int) -> str:
    """Return a figure, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """Return a figure with its sign, or a dash; one that would be rounded to zero keeps its size."""
    if value is None:
        return NOTHING
    vanishes = value != 0 and round(value, digits) == 0
    return f"{value:+.0e}" if vanishes else f"{value:+.{digits}f}"


def _but_reference(row: Row, text: str) -> str:
    return NOTHING if row["dtype"] == REFERENCE else text


# ----------------------------------------------------------------------
# Fill the template: figures as PNG inside the page, every text escaped.

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
        run_facts=run_facts(results),
        recommendation=recommendation,
        glance=glance(results["table"]),
        drops=drops(results["table"]),
        execution=execution(results["table"]),
        baselines=baselines(results["table"], results["facts"]["task"]),
        repeats=len(results["latency"][0]["times_ms"]),
        gallery_dtype=dtype,
        gallery=[(face.name, face.role) for face in faces],
        comparison=comparison_table(comparison["rows"]) if comparison else None,
        compared=compared_runs(comparison["runs"]) if comparison else None,
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
