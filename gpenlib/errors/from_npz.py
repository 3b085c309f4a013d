"""Score network outputs that lie in npz files: ``python -m gpenlib.errors.from_npz FOLDER PACK_FOLDER``.

The figures are those that 04_infer gives for the same outputs, because the same function computes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpenlib.data.packs import Pack, read_pack
from gpenlib.data.sources import DataError
from gpenlib.infer.chroma import Chroma, DataChroma, data_chroma
from gpenlib.infer.npz_outputs import output_paths, read_output_npz
from gpenlib.infer.scoring import BASELINES, SCORES, in_parallel, score, summarise
from gpenlib.progress import progress
from gpenlib.run import write_csv, write_json

Row = dict[str, Any]


def evaluate_npz(
    folder: str | Path, pack: Pack, named: bool = True, chroma: DataChroma | None = None
) -> list[Row]:
    """Score outputs that :func:`gpenlib.infer.npz_outputs.write_outputs_npz` wrote.

    Parameters
    ----------
    folder : path
    pack : Pack
        The pack whose inputs were restored, with truths.
    named : bool
        False for files of the vendor's own tool, which hold no names: taken in the order of their file
        names, and only their number is checked.
    chroma : DataChroma, optional
        Of the chroma baseline; found by :func:`gpenlib.infer.chroma.data_chroma` if not given.

    Returns
    -------
    list of dict
        One row per image in pack order: ``name`` and the figures of :func:`gpenlib.infer.scoring.score`.

    Raises
    ------
    DataError
        If an output is missing, of another face, or not finite float32 of the truth's size. The
        message names the file.
    """
    paths = output_paths(folder, pack, named)
    chromas = (chroma or data_chroma(pack)).per_face
    jobs = (
        partial(_score_file, pack, index, path, named, chromas[index]) for index, path in enumerate(paths)
    )
    return list(progress(in_parallel(jobs), total=len(pack), desc="score npz", unit="image"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the means, write the rows as JSON and CSV; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gpenlib.errors.from_npz", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of npz outputs")
    parser.add_argument("pack", type=Path, help="folder of the pack, such as outputs/demo/02_data/evaluation")
    parser.add_argument("--unnamed", action="store_true", help="files of the vendor's tool: no names inside")
    parser.add_argument("--out", type=Path, help="where rows.json and rows.csv go (default: beside FOLDER)")
    given = parser.parse_args(arguments)
    try:
        pack = read_pack(given.pack)
        chroma = data_chroma(pack)
        rows = evaluate_npz(given.folder, pack, not given.unnamed, chroma)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    means = summarise(rows)
    print(_table(means, len(rows)))
    print(f"chroma baseline: {chroma.source}")
    out = given.out or given.folder.parent
    results = {"images": len(rows), "chroma_baseline": chroma.source, **means, "rows": rows}
    for path in (write_json(out / "rows.json", results), write_csv(out / "rows.csv", rows)):
        print(f"wrote {path}")
    return 0


def _score_file(pack: Pack, index: int, path: Path, named: bool, chroma: Chroma) -> Row:
    """Return the row of one file."""
    name, truth = pack.paths[index].stem, pack.truths(index)
    output = read_output_npz(path, name if named else None, truth.shape[0])
    return {"name": name, **score(pack.inputs(index), truth, output, chroma)}


def _table(means: dict[str, float], count: int) -> str:
    """Return the mean scores of the outputs and of the baselines, one line each."""
    lines = [f"{f'mean of {count}':<16}" + "".join(f"{name:>14}" for name in SCORES)]
    for label, suffix in (("output", ""), *((name, f"_{name}") for name in BASELINES)):
        values = [means[f"{name}{suffix}_mean"] for name in SCORES]
        lines.append(f"{label:<16}" + "".join(f"{value:>14.4f}" for value in values))
    for label in ("truncated", "float"):
        values = [means[f"{name}_{label}_mean"] for name in ("psnr", "ssim")]
        lines.append(f"{label:<16}" + "".join(f"{value:>14.4f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
