"""``python -m gpenlib score``: faces restored and scored as 04_infer does, any number; or npz outputs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpenlib import metrics
from gpenlib.cluster.engine import (
    DIED,
    ClusterError,
    Files,
    Made,
    Make,
    Packed,
    PartJob,
    absolute,
    add_arguments,
    cluster_of,
    gather,
    in_batches,
    read_files,
    run_parts,
)
from gpenlib.cluster.sources import Item, Store
from gpenlib.cluster.sums import SUMMARY, merge_parts
from gpenlib.data.faces import Faces, embedded_faces, open_folder, read_face
from gpenlib.data.pairs import Pairs
from gpenlib.files import StorageError, fingerprint, resolve_path
from gpenlib.images import Image, in_short
from gpenlib.infer import Runtime
from gpenlib.infer.artefact import MANIFEST_FILE
from gpenlib.infer.scoring import (
    MEANS,
    Baselines,
    Chroma,
    Row,
    data_chroma,
    restore_pairs,
    score_baselines,
    score_npz,
)
from gpenlib.jobs import Journal, command, progress

SPAN = 32  # faces that a worker is given at a time by a notebook


def restored(
    runtime: Runtime,
    pairs: Pairs,
    batch_size: int,
    baselines: Baselines,
    kinds: Sequence[str],
    **options: Any,
) -> list[tuple[Row, Files]]:
    """Restore and score faces; return the row of each with its files, of ``kinds`` images and npz.

    ``options`` are others of :func:`gpenlib.infer.scoring.restore_pairs`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options |= {"baselines": baselines} | {kind: Path(scratch) / kind for kind in kinds}
        rows = in_batches(lambda size: restore_pairs(runtime, pairs, size, **options), batch_size)
        files = read_files(Path(scratch))
    paths = (
        (f"images/{name}.png", f"npz/{index:06d}_{name}.npz")
        for index, name in enumerate(pairs.names, options.get("first", 0))
    )
    return [(row, {p: files[p] for p in some if p in files}) for row, some in zip(rows, paths, strict=True)]


# Notebook 04: the faces of a run; results come back to this process, which writes them as it always does.


def restore_on_cluster(
    runtime: Runtime,
    pairs: Pairs,
    batch_size: int,
    images: Path | None,
    npz: Path | None,
    baselines: Baselines,
    finished: Journal,
) -> list[Row]:
    """Do what :func:`gpenlib.infer.scoring.restore_pairs` does on a Ray cluster, with the runtime's artefact.

    Files go to the journal's folder, of which ``images`` and ``npz`` are parts.
    """
    runtime.check_batch(batch_size, len(pairs))
    packed, device = Packed.of(runtime.path.parent, runtime.chroma), runtime.device
    kinds = [name for name, folder in (("images", images), ("npz", npz)) if folder]

    def start(threads: int | None) -> Make:
        own, called = packed.open(threads, device), set[int]()

        def make(places: list[int], batch: int) -> Made:
            known = Baselines(baselines.source, tuple(baselines.rows[place] for place in places))
            some = pairs.take(places)
            return restored(own, some, batch, known, kinds, first=places[0], called=called)

        return make

    span = batch_size * -(-SPAN // batch_size)  # of the same batches as in one process: they decide last bits
    return _rows_of(start, pairs, span, batch_size, finished, device, "infer")


def baselines_on_cluster(pairs: Pairs, calibration: Pairs, finished: Journal) -> Baselines:
    """Do what :func:`gpenlib.infer.scoring.score_baselines` does on a Ray cluster."""
    source, chromas = data_chroma(pairs, calibration)

    def make(places: list[int], batch: int) -> Made:
        colour = source, [chromas[place] for place in places]
        return ((row, {}) for row in score_baselines(pairs.take(places), colour=colour).rows)

    rows = _rows_of(lambda threads: make, pairs, SPAN, 1, finished, "cpu", "baselines")
    return Baselines(source, tuple(rows))


def _rows_of(
    start: Callable[[int | None], Make], pairs: Pairs, span: int, batch_size: int, finished: Journal,
    device: str, what: str,
) -> list[Row]:  # fmt: skip
    """Return the rows of all faces in order; the journal gets each with its files, as it comes."""
    names, done = pairs.names, finished.finished

    def died(place: int) -> tuple[Row, Files]:
        raise ClusterError(f"{names[place]}: {DIED}")

    made = gather(start, names, span, batch_size, finished, device, died)
    bar = {"total": len(names), "initial": len(done), "desc": f"{what} on the cluster", "unit": "image"}
    with progress(**bar) as shown:
        for name, row, files in made:
            finished.add(name, row, files)
            shown.update()
    return [done[name] for name in names]


# The command: faces of any source, results as parts.


@dataclass(frozen=True)
class ScoreJob(PartJob):
    """Restores faces and scores them against themselves, degraded by a task."""

    artefact: Packed
    device: str
    task: str
    seed: int
    colour: tuple[str, Chroma]  # of the even colour that is a baseline, and where it comes from
    most_megapixels: float
    columns: ClassVar = {
        **dict.fromkeys(("name", "source", "failure"), "string"), "place": "int64",
        **dict.fromkeys(MEANS, "float64"),
    }  # fmt: skip

    def read(self, path: Path) -> Image | str:
        """Return a face, or why there is none to score."""
        face = read_face(path, self.most_megapixels)
        grey = self.task == "color" and metrics.is_grey(face)
        return "grey: no truth to score task 'color' against" if grey else face

    def start(self, threads: int | None) -> Make:
        """Return the function that restores and scores some faces."""
        return partial(self._restored, self.artefact.open(threads, self.device), set[int]())

    def _restored(
        self, runtime: Runtime, called: set[int], given: list[tuple[Item, Image]], batch_size: int
    ) -> list[tuple[Row, Files]]:
        """Return rows and files; a face that the network cannot take is a failure of its own."""
        items, truths = zip(*given, strict=True)
        source = Faces("faces", [item.name for item in items], truths.__getitem__, lambda _: "")
        pairs = Pairs(source, self.task, runtime.in_size, runtime.out_size, (self.seed, 0))
        pairs = pairs.placed([item.stem for item in items], [item.place for item in items])
        try:
            known = score_baselines(pairs, colour=(self.colour[0], [self.colour[1]] * len(pairs)))
            made = restored(runtime, pairs, batch_size, known, ["images"], called=called)
        except StorageError:
            raise
        except Exception as error:
            if len(given) == 1:
                return [(items[0].row(in_short(error)), {})]
            return [row for each in given for row in self._restored(runtime, called, [each], 1)]
        return [
            (
                item.row() | {name: row[name] for name in MEANS},
                {item.inside(path): data for path, data in files.items()},
            )
            for item, (row, files) in zip(items, made, strict=True)
        ]


def even_colour(
    calib_dir: str, calib_size: int, seed: int, task: str, sizes: tuple[int, int]
) -> tuple[str, Chroma]:
    """Return the colour of the chroma baseline, the mean of some faces, and where it comes from."""
    faces = open_folder(resolve_path(calib_dir)) if calib_dir else embedded_faces(calib_size)
    drawn = np.random.default_rng(seed).permutation(len(faces))[:calib_size]
    calibration = Pairs(faces.take(sorted(drawn.tolist())), task, *sizes, (seed, 1))
    source, (chroma, *_) = data_chroma(calibration.take(range(1)), calibration)
    return source, chroma


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Score network outputs in npz files against a pack; with --artefact, restore faces and score these.

    Of faces any number can be scored, by this process or by a Ray cluster; the parts and sums are the same.
    """
    parser = argparse.ArgumentParser(prog="python -m gpenlib score", description=main.__doc__)
    add = parser.add_argument
    about = "npz outputs and their pack; with --artefact, faces: folders, Parquet, shards, fsspec addresses"
    add("sources", nargs="+", metavar="FOLDER", help=about)
    add("--unnamed", action="store_true", help="files of the vendor's tool: no names inside")
    add("--outside", action="store_true", help="the pack's list may lead out of its folder")
    add("--out", help="where results go (npz: beside FOLDER, or its stage; needed with --artefact)")
    add("--artefact", help="folder of a compiled network that restores the faces")
    add("--task", default="", help="how faces are degraded (default: what the network was trained for)")
    add("--seed", type=int, default=0, help="of degradations and of the draw of --calib-dir")
    add("--batch-size", type=int, default=1, metavar="N", help="images per call (default: 1)")
    add("--calib-dir", default="", help="faces of the chroma baseline (default: embedded ones)")
    add("--calib-size", type=int, default=32, metavar="N", help="how many of them (default: 32)")
    add_arguments(parser, 64)
    options = parser.parse_args(arguments)
    if options.artefact:
        return _score_faces(options)
    if len(options.sources) != 2:
        raise ClusterError(f"{len(options.sources)} folders: name npz outputs and their pack, or --artefact")
    outputs, pack = map(resolve_path, options.sources)
    out = resolve_path(options.out) if options.out else None
    return score_npz(outputs, pack, options.unnamed, options.outside, out)


def _score_faces(options: argparse.Namespace) -> int:
    """Restore and score faces; write parts, summary and report."""
    cluster, folder = cluster_of(options), resolve_path(options.artefact)
    if not options.out:
        raise ClusterError("--out: name the folder or address for the results")
    out, packed = absolute(options.out), Packed.of(folder)
    artefact, task = packed.about, options.task or packed.about.task
    if not task:
        told = f"{folder / MANIFEST_FILE} does not say what the network was trained for"
        raise ClusterError(f"--task: {told}; name it")
    sizes = artefact.in_size, artefact.out_size
    colour = even_colour(options.calib_dir, options.calib_size, options.seed, task, sizes)
    size = options.batch_size * max(1, options.unit // options.batch_size)
    names = ("sources", "device", "batch_size", "seed", "most_megapixels", "limit", "write")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"artefact": packed.digest, "task": task, "colour": colour, "unit": size}
    job = ScoreJob(
        out, size, options.write, fingerprint(settings), options.batch_size, packed, options.device, task,
        options.seed, colour, options.most_megapixels,
    )  # fmt: skip
    parts = run_parts(job, options.sources, cluster, settings, options.limit)
    store, about = Store(out), {name: settings[name] for name in ("task", "device", "batch_size")}
    about = {"sources": ", ".join(options.sources), "artefact": folder.name, "dtype": artefact.dtype, **about}
    summary = merge_parts(store, parts, about | {"colour of the chroma baseline": colour[0]})
    for name in ("psnr", "ssim", "psnr_input", "ssim_input") if summary["images"] else ():
        figure = summary["figures"][name]
        print("{:11} {mean:8.4f}  from {low:.4f} to {high:.4f}".format(name, **figure))
    print(f"wrote {store.path(SUMMARY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
