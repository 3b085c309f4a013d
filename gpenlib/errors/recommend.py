"""Which precision to take: the fastest one whose loss is acceptable, and in a sentence why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpenlib.errors.compare import REFERENCE
from gpenlib.errors.statistics import FEWEST

Row = Mapping[str, Any]
MAX_DROP_DB = 0.1
MAX_COLOUR_SHIFT = 0.5
ENOUGH = 20  # with fewer faces intervals are too narrow, see gpenlib.errors.statistics


@dataclass(frozen=True)
class Recommendation:
    """A precision to take.

    Attributes
    ----------
    dtype : str or None
        None if the measurement does not allow a choice.
    reason : str
        Why, in words, with the figures.
    others : mapping of dtype to str
        Why not the others.
    cautions : tuple of str
        What weakens the choice.
    """

    dtype: str | None
    reason: str
    others: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def recommend(
    table: Sequence[Row], max_drop_db: float = MAX_DROP_DB, max_colour_shift: float = MAX_COLOUR_SHIFT
) -> Recommendation:
    """Recommend the fastest precision whose loss is acceptable.

    Parameters
    ----------
    table : sequence of mapping
        Of 05_errors, fp32 among them: ``dtype``, ``images``, ``psnr_drop`` with ``psnr_drop_low`` and
        ``psnr_drop_high`` (ends of the 95 % interval, None below five faces), ``colour_shift_to_fp32``,
        ``executed_precision``, and the times per image ``latency_ms``, ``latency_p10_ms``,
        ``latency_p90_ms`` (see :func:`gpenlib.errors.costs.with_costs`) or only ``ms_per_image``.
    max_drop_db : float
        A loss is acceptable if the upper end of its interval is not above this: one may be all but sure
        that no more is lost.
    max_colour_shift : float
        The mean colour must move less than this (CIELAB).

    Returns
    -------
    Recommendation
        Precisions whose times overlap with the fastest one's (10th to 90th percentile) count as equally fast;
        of those the one with the smallest upper end of the loss is taken. Without intervals none is.

    Raises
    ------
    ValueError
        If fp32 is not in the table.
    """
    rows = {row["dtype"]: row for row in table}
    if REFERENCE not in rows:
        raise ValueError(f"{', '.join(rows) or 'an empty table'}: {REFERENCE} must be among the precisions")
    images = int(rows[REFERENCE]["images"])
    if any(row["psnr_drop_high"] is None for row in table):
        return Recommendation(
            None,
            f"{_faces(images)} {'is' if images == 1 else 'are'} too few to say what a precision loses: an "
            f"interval needs at least {FEWEST}, and is to be trusted from about {ENOUGH}. Until then "
            f"{REFERENCE} is the safe choice.",
            {
                dtype: f"What it loses is not known well enough from {_faces(images)}."
                for dtype in rows
                if dtype != REFERENCE
            },
        )
    faults = {dtype: _fault(row, max_drop_db, max_colour_shift) for dtype, row in rows.items()}
    acceptable = [row for dtype, row in rows.items() if not faults[dtype] or dtype == REFERENCE]
    fastest = min(acceptable, key=lambda row: _times(row)[1])
    equal = [row for row in acceptable if _times(row)[0] <= _times(fastest)[2]]
    chosen = min(equal, key=lambda row: (row["psnr_drop_high"], _times(row)[1]))
    others = {
        dtype: faults[dtype] or _slower(row, chosen, row in equal)
        for dtype, row in rows.items()
        if row is not chosen
    }
    reason = _reason(chosen, rows[REFERENCE], equal, max_drop_db, max_colour_shift)
    return Recommendation(chosen["dtype"], reason, others, _cautions(table, images))


def _fault(row: Row, max_drop_db: float, max_colour_shift: float) -> str:
    """Return why a loss is not acceptable, or nothing."""
    if row["dtype"] == REFERENCE:
        return ""
    if row["psnr_drop_high"] > max_drop_db:
        return (
            f"It may lose too much: {row['psnr_drop']:.3f} dB of PSNR on average and up to "
            f"{row['psnr_drop_high']:.3f} dB at the upper end of the interval, where {max_drop_db:g} dB is "
            f"the budget{_executed(row)}."
        )
    if row["colour_shift_to_fp32"] >= max_colour_shift:
        return (
            f"It shifts the colour: the mean colour of a face moves by ΔE {row['colour_shift_to_fp32']:.2f}, "
            f"where less than {max_colour_shift:g} is the budget{_executed(row)}."
        )
    return ""


def _reason(chosen: Row, reference: Row, equal: Sequence[Row], drop: float, shift: float) -> str:
    """Return why the chosen one is recommended."""
    own = _times(chosen)[1]
    peers = [f"{row['dtype']} ({_ms(row)})" for row in equal if row is not chosen]
    if chosen is reference:
        if not peers:
            return f"No other precision within the budget is as fast as {REFERENCE} ({_ms(chosen)})."
        return (
            f"It takes {_ms(chosen)} and loses nothing; within the spread of the times nothing acceptable is "
            f"faster (as fast: {', '.join(peers)})."
        )
    times = _times(reference)[1] / own
    text = (
        f"It takes {_ms(chosen)}, {times:.1f} times as fast as {REFERENCE} ({_ms(reference)}). It loses "
        f"{chosen['psnr_drop']:.3f} dB of PSNR on average, at most {chosen['psnr_drop_high']:.3f} dB at the "
        f"upper end of the 95 % interval (budget {drop:g} dB), and moves the mean colour by ΔE "
        f"{chosen['colour_shift_to_fp32']:.2f} (budget below {shift:g}){_executed(chosen)}."
    )
    if peers:
        text += f" As fast within the spread of the times, but less accurate: {', '.join(peers)}."
    return text


def _slower(row: Row, chosen: Row, equally_fast: bool) -> str:
    """Return why an acceptable precision is not the chosen one."""
    if equally_fast:
        return (
            f"As fast as {chosen['dtype']} within the spread of the times ({_ms(row)}), but it may lose "
            f"more: up to {row['psnr_drop_high']:.4f} dB against {chosen['psnr_drop_high']:.4f} dB"
            f"{_executed(row)}."
        )
    times = _times(row)[1] / _times(chosen)[1]
    loss = "It loses nothing" if row["dtype"] == REFERENCE else "Its loss is within the budget"
    return f"{loss}, but it takes {_ms(row)}, {times:.1f} times {chosen['dtype']}'s time{_executed(row)}."


def _times(row: Row) -> tuple[float, float, float]:
    """Return 10th percentile, median and 90th percentile in ms per image; three times one figure if alone."""
    if row.get("latency_ms") is None:
        return (row["ms_per_image"],) * 3
    return row["latency_p10_ms"], row["latency_ms"], row["latency_p90_ms"]


def _cautions(table: Sequence[Row], images: int) -> tuple[str, ...]:
    """Return what weakens any choice from this table."""
    found = []
    if images < ENOUGH:
        found.append(f"Only {_faces(images)}: intervals from fewer than about {ENOUGH} faces are too narrow.")
    if any(row.get("latency_ms") is None for row in table):
        found.append("The times come from separate runs: small differences between them may be noise.")
    return tuple(found)


def _ms(row: Row) -> str:
    return f"{_times(row)[1]:.1f} ms per image"


def _faces(images: int) -> str:
    return f"{images} face{'s' if images != 1 else ''}"


def _executed(row: Row) -> str:
    return f"; executed as {row['executed_precision']}"
