"""The page ``report.html``: tables and figures of one run of 05_errors in a file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from gpenlib.data.tasks import baseline_name
from gpenlib.errors.compare import (
    CONFIDENCE,
    REFERENCE,
    TRAITS,
    FaceErrors,
    Recommendation,
    groups_note,
    pareto_rows,
)
from gpenlib.files import write_atomically
from gpenlib.plots.compile import pareto_figure
from gpenlib.plots.errors import drops_figure, groups_figure, worst_figure

Row = Mapping[str, Any]
Table = dict[str, Any]  # "head": names of columns; "rows": a list of cells each
SCORES = {"psnr": "PSNR [dB]", "ssim": "SSIM", "delta_e2000": "ΔE 2000", "chroma_error": "chroma error"}
DIGITS = {"psnr": 3, "ssim": 4, "delta_e2000": 3, "chroma_error": 3}
NOTHING = "–"
DPI = 110


def write_report(
    path: Path,
    results: Mapping[str, Any],
    recommendation: Recommendation,
    gallery: tuple[str, Sequence[FaceErrors]],
    command: str,
    comparison: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page of one run: the same results give the same text.

    ``gallery`` is a dtype other than fp32 and the faces on which it loses most, ``command`` what repeats the
    run, ``comparison`` the ``rows`` and ``runs`` of a comparison with other runs.
    """
    table, facts, (dtype, faces) = results["table"], results["facts"], gallery
    pareto = pareto_rows(table, results["latency"])
    groups = [row for row in results["groups"] if row["score"] == "psnr"]  # those that the figure shows
    others = [row for row in table if row["dtype"] != REFERENCE]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.j2").render(
        facts=facts,
        run_facts=run_facts(facts),
        chroma_baseline=results["chroma_baseline"],
        recommendation=recommendation,
        confidence=f"{CONFIDENCE:.0%}",
        glance=glance(table),
        drops=drops(others),
        tests=len(others) * len(SCORES),
        execution=execution(table),
        baselines=baselines(table, facts["task"]),
        achieved=achieved(table),
        groups=group_table(groups),
        groups_note=groups_note(results["groups"]),
        repeats=len(results["latency"][0]["times_ms"]),
        gallery_dtype=dtype,
        gallery=[(face.name, face.role) for face in faces],
        comparison=comparison_table(comparison["rows"]) if comparison else None,
        compared=compared_runs(comparison["runs"]) if comparison else None,
        command=command,
        # by name: the picture, and what it shows in words for those who do not see it
        figures={
            "pareto": (
                inline(pareto_figure(pareto)),
                "Time per call against loss of PSNR: "
                + "; ".join(
                    f"{row['dtype']} {row['median_ms']:.1f} ms, {signed(row['psnr_drop'], 3)} dB"
                    for row in pareto
                ),
            ),
            "drops": (
                inline(drops_figure(results["rows"], table)),
                "Mean loss with interval, and every face: "
                + "; ".join(
                    f"{row['dtype']} {drop_cell(row, 'psnr')} dB of PSNR, {drop_cell(row, 'ssim')} of SSIM"
                    for row in others
                ),
            ),
            "groups": (
                inline(groups_figure(results["groups"])),
                f"Loss of PSNR in {len(groups)} groups of faces, by {', '.join(TRAITS.values())}; the table has the numbers",
            ),
            "worst": (
                inline(worst_figure(faces, dtype)),
                f"Input, fp32, {dtype} and error map, whole and enlarged, of "
                + "; ".join(
                    f"{face.name}, largest error {int(face.errors[dtype].max())} grey levels"
                    for face in faces
                ),
            ),
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


# Rows in, rows of text out. Every figure is one of ``results.json``, rounded.


def run_facts(facts: Row) -> list[tuple[str, str]]:
    """Return what was run on what, as pairs of name and text."""
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
    rows = []
    for row in table:
        ssim, shift = signed(row["ssim_drop"], 4), fixed(row["colour_shift_to_fp32"], 2)
        if row["dtype"] == REFERENCE:
            ssim = shift = NOTHING
        rows.append([
            row["dtype"], fixed(row["psnr"], 3), drop_cell(row, "psnr"), fixed(row["ssim"], 4), ssim,
            fixed(row["delta_e2000"], 2), shift, fixed(row["model_mib"], 1), fixed(row["latency_ms"], 1),
            f"{row['latency_p10_ms']:.1f} to {row['latency_p90_ms']:.1f}",
        ])  # fmt: skip
    return {"head": head, "rows": rows}


def drops(others: Sequence[Row]) -> Table:
    """Return what every dtype but fp32 loses in every score, with interval and verdict."""
    rows = []
    for row in others:
        for score, name in SCORES.items():
            mean, low, high = (
                signed(row[f"{score}_drop{end}"], DIGITS[score] + 1) for end in ("", "_low", "_high")
            )
            rows.append([row["dtype"], name, mean, low, high, row[f"{score}_verdict"]])
    return {"head": ["precision", "score", "mean loss", "from", "to", "verdict"], "rows": rows}


def group_table(groups: Sequence[Row]) -> Table:
    """Return what every dtype loses in every group of faces, with interval and corrected verdict."""
    rows = [
        [row["dtype"], TRAITS[row["trait"]], row["group"], str(row["faces"]),
         *(signed(row[f"drop{end}"], DIGITS[row["score"]]) for end in ("", "_low", "_high")), row["verdict"]]
        for row in groups
    ]  # fmt: skip
    head = ["precision", "property", "group", "faces", "mean loss [dB]", "from", "to", "verdict, corrected"]
    return {"head": head, "rows": rows}


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


def achieved(table: Sequence[Row]) -> str:
    """Return in a sentence how the largest mean loss compares with what the network achieves."""
    fp32 = next(row for row in table if row["dtype"] == REFERENCE)
    most = max((row for row in table if row is not fp32), key=lambda row: row["psnr_drop"])
    gain = fp32["psnr"] - fp32["psnr_input"]
    return (
        f"Against doing nothing fp32 {'gains' if gain >= 0 else 'loses'} {abs(gain):.3f} dB of PSNR; the largest "
        f"mean loss of a precision is {signed(most['psnr_drop'], 3)} dB ({most['dtype']})."
    )


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return the scores of the later runs beside the first one's, and the differences."""
    head = ["precision", "score", "run", "faces", "first run", "this run", "difference", "from", "to", "verdict"]  # fmt: skip
    first_run = rows[0]["run"]
    first = {(row["dtype"], row["score"]): row["value"] for row in rows if row["run"] == first_run}
    cells = []
    for row in rows:
        if row["run"] != first_run:
            digits = DIGITS[row["score"]]
            images = NOTHING if row["images"] is None else str(row["images"])
            values = [fixed(value, digits) for value in (first[row["dtype"], row["score"]], row["value"])]
            differences = [signed(row[name], digits + 1) for name in ("difference", "low", "high")]
            label = [row["dtype"], SCORES[row["score"]], row["run"], images]
            cells.append([*label, *values, *differences, row["verdict"]])
    return {"head": head, "rows": cells}


def compared_runs(runs: Mapping[str, Row]) -> Table:
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
    value, low, high = (signed(row[f"{score}_drop{end}"], DIGITS[score]) for end in ("", "_low", "_high"))
    return f"{value} (no interval)" if low == NOTHING else f"{value} ({low} to {high})"


def fixed(value: float | None, digits: int) -> str:
    """Return a figure, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """Return a figure with its sign, or a dash; one that would be rounded to zero keeps its size."""
    if value is None:
        return NOTHING
    vanishes = value != 0 and round(value, digits) == 0
    return f"{value:+.0e}" if vanishes else f"{value:+.{digits}f}"
