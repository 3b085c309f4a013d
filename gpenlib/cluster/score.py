"""``python -m gpenlib score``: faces restored and scored as 04_infer does, any number; or npz outputs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib import metrics
from gpenlib.cluster.engine import (
    DIED,
    Attempt,
    Cluster,
    ClusterError,
    Files,
    Made,
    Packed,
    PartJob,
    Spans,
    absolute,
    add_arguments,
    cluster_of,
    in_batches,
    read_files,
    run_parts,
    spread,
)
from gpenlib.cluster.sources import Item, Store
from gpenlib.cluster.sums import SUMMARY, merge_parts
from gpenlib.data.faces import Faces, embedded_faces, open_folder, read_face
from gpenlib.data.pairs import Pairs
from gpenlib.files import StorageError, fingerprint, resolve_path
from gpenlib.images import Image, in_short
from gpenlib.infer import Runtime
from gpenlib.infer.runtime import MANIFEST_FILE, read_artefact
from gpenlib.infer.scoring import (
    MEANS,
    Baselines,
    Chroma,
    Row,
    data_chroma,
    restore_pairs,
    score_baselines,
    score_npz,
    workers,
)
from gpenlib.jobs import Journal, ahead, command, progress

SPAN = 32  # faces that a worker is given at a time by a notebook


# Notebook 04: the faces of a run; results come back to this process, which writes them as it always does.


@dataclass(frozen=True)
class _FacesJob:
    """Restores and scores faces, or scores their baselines where there is no artefact."""

    pairs: Pairs
    colour: tuple[str, tuple[Chroma, ...]] | None = None
    artefact: Packed | None = None
    device: str = "cpu"
    batch_size: int = 1
    baselines: Baselines | None = None
    images: bool = False
    npz: bool = False

    def open(self, threads: int | None) -> Callable[[range, Attempt], list[tuple[str, Row, Files]]]:
        runtime = self.artefact.open(threads, self.device) if self.artefact else None
        called: set[int] = set()

        def work(span: range, attempt: Attempt) -> list[tuple[str, Row, Files]]:
            done: list[tuple[str, Row, Files]] = []
            if attempt.blamed:
                names = ", ".join(self.pairs.names[index] for index in sorted(attempt.blamed))
                raise ClusterError(f"{names}: {DIED}")
            for turn, batch in attempt.turns(span, self.batch_size):
                done += self._restored(runtime, span[turn.start : turn.stop], batch, called)
            return done

        return work

    def _restored(self, runtime: Runtime | None, span: range, batch: int, called: set[int]) -> list[Any]:
        pairs = self.pairs.take(span)
        if runtime is None:
            assert self.colour
            source, chromas = self.colour
            rows = score_baselines(pairs, colour=(source, [chromas[i] for i in span])).rows
            return [(name, row, {}) for name, row in zip(pairs.names, rows, strict=True)]
        assert self.baselines
        known = Baselines(self.baselines.source, tuple(self.baselines.rows[i] for i in span))
        with tempfile.TemporaryDirectory() as scratch:
            folders = [
                Path(scratch) / name if asked else None
                for name, asked in (("images", self.images), ("npz", self.npz))
            ]
            work = partial(restore_pairs, runtime, pairs, first=span.start, baselines=known, called=called)
            rows = in_batches(lambda size: work(batch_size=size, images=folders[0], npz=folders[1]), batch)
            files = read_files(Path(scratch))
        owners = {f"images/{name}.png": name for name in pairs.names}
        owners |= {f"npz/{span.start + i:06d}_{name}.npz": name for i, name in enumerate(pairs.names)}
        made: dict[str, dict[str, bytes]] = {name: {} for name in pairs.names}
        for path, data in files.items():
            made[owners[path]][path] = data
        return [(row["name"], row, made[row["name"]]) for row in rows]


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
    job = _FacesJob(pairs, None, packed, device, batch_size, baselines, images is not None, npz is not None)
    size = batch_size * -(-SPAN // batch_size)  # of the same batches as in one process: they decide last bits
    return _gather(job, size, finished, "infer")


def baselines_on_cluster(pairs: Pairs, calibration: Pairs, finished: Journal) -> Baselines:
    """Do what :func:`gpenlib.infer.scoring.score_baselines` does on a Ray cluster."""
    colour = data_chroma(pairs, calibration)
    return Baselines(colour[0], tuple(_gather(_FacesJob(pairs, colour), SPAN, finished, "baselines")))


def _gather(job: _FacesJob, size: int, finished: Journal, desc: str) -> list[Row]:
    """Return the rows of all faces in order; the journal gets each with its files, as it comes."""
    names, done = job.pairs.names, finished.finished
    spans = [range(start, min(start + size, len(names))) for start in range(0, len(names), size)]
    left = [number for number, span in enumerate(spans) if any(names[i] not in done for i in span)]
    gpus = None if job.device == "cpu" else 1.0
    results = spread(job, partial(Spans, len(names), size, tuple(left)), Cluster(gpus=gpus), ordered=True)
    store = Store(str(finished.folder))
    next(results)
    with progress(total=len(names), initial=len(done), desc=f"{desc} on the cluster", unit="image") as bar:
        for result in results:
            for name, row, files in result:
                if name not in done:
                    paths = [Path(store.write(path, data)) for path, data in files.items()]
                    finished.add(name, row, paths)
                    bar.update()
    return [done[name] for name in names]


# The command: faces of any source, results as parts.


@dataclass(frozen=True)
class ScoreJob(PartJob):
    """Restores faces and scores them against themselves, degraded by a task."""

    artefact: Packed
    device: str
    batch_size: int
    task: str
    seed: int
    colour: tuple[str, Chroma]  # of the even colour that is a baseline, and where it comes from
    most_megapixels: float

    def schema(self) -> Any:
        """Return the columns of rows."""
        import pyarrow as pa

        text = [pa.field(name, pa.string()) for name in ("name", "source", "failure")]
        return pa.schema([*text, pa.field("place", pa.int64()), *(pa.field(n, pa.float64()) for n in MEANS)])

    def start(self, threads: int | None) -> Callable[[Sequence[Item], Attempt], Made]:
        """Return the function that restores and scores some faces."""
        runtime, called = self.artefact.open(threads, self.device), set[int]()

        def read(item: Item, scratch: Path) -> Image | str:
            path = Path(item.path)
            try:
                path = item.file(scratch)
                face = read_face(path, self.most_megapixels)
            except StorageError:
                raise
            except (OSError, ValueError, MemoryError) as error:
                return in_short(error).replace(f"{path}: ", "").replace(str(path), item.name)
            grey = self.task == "color" and metrics.is_grey(face)
            return "grey: no truth to score task 'color' against" if grey else face

        def make(items: Sequence[Item], attempt: Attempt) -> Made:
            made: dict[int, tuple[Row, Files]] = {}
            whole: list[tuple[Item, Image]] = []
            with tempfile.TemporaryDirectory() as scratch:
                faces = ahead(items, partial(read, scratch=Path(scratch)), workers=workers())
                for item, face in zip(items, faces, strict=True):
                    if item.place in attempt.blamed:
                        face = DIED
                    if isinstance(face, str):
                        made[item.place] = item.row(face), {}
                    else:
                        whole.append((item, face))
            for turn, batch in attempt.turns([item.place for item, _ in whole], self.batch_size):
                made |= self._restored(runtime, whole[turn.start : turn.stop], batch, called)
            return [made[item.place] for item in items]

        return make

    def _restored(
        self, runtime: Runtime, faces: list[tuple[Item, Image]], batch: int, called: set[int]
    ) -> dict[int, Any]:
        """Return rows and files by place; a face that the network cannot take is a failure of its own."""
        if not faces:
            return {}
        items, truths = zip(*faces, strict=True)
        source = Faces("faces", [item.name for item in items], truths.__getitem__, lambda _: "")
        pairs = Pairs(source, self.task, runtime.in_size, runtime.out_size, (self.seed, 0))
        pairs = pairs.placed([item.stem for item in items], [item.place for item in items])
        with tempfile.TemporaryDirectory() as scratch:
            try:
                known = score_baselines(pairs, colour=(self.colour[0], [self.colour[1]] * len(pairs)))
                work = partial(
                    restore_pairs, runtime, pairs, images=Path(scratch), baselines=known, called=called
                )
                rows = in_batches(lambda size: work(batch_size=size), batch)
            except StorageError:
                raise
            except Exception as error:
                if len(faces) == 1:
                    return {items[0].place: (items[0].row(in_short(error)), {})}
                halves = faces[: len(faces) // 2], faces[len(faces) // 2 :]
                return {k: v for half in halves for k, v in self._restored(runtime, half, 1, called).items()}
            made = read_files(Path(scratch))
        return {
            item.place: (
                item.row() | {name: row[name] for name in MEANS},
                {item.inside(f"images/{item.stem}.png"): made[f"{item.stem}.png"]},
            )
            for item, row in zip(items, rows, strict=True)
        }


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
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="FOLDER",
        help="npz outputs and their pack; with --artefact, faces: folders, Parquet, shards, fsspec addresses",
    )
    parser.add_argument("--unnamed", action="store_true", help="files of the vendor's tool: no names inside")
    parser.add_argument("--outside", action="store_true", help="the pack's list may lead out of its folder")
    parser.add_argument(
        "--out", help="where results go (npz: beside FOLDER, or its stage; needed with --artefact)"
    )
    parser.add_argument("--artefact", help="folder of a compiled network that restores the faces")
    parser.add_argument(
        "--task", default="", help="how faces are degraded (default: what the network was trained for)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of degradations and of the draw of --calib-dir")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per call (default: 1)")
    parser.add_argument(
        "--calib-dir", default="", help="faces of the chroma baseline (default: embedded ones)"
    )
    parser.add_argument(
        "--calib-size", type=int, default=32, metavar="N", help="how many of them (default: 32)"
    )
    add_arguments(parser, 64)
    options = parser.parse_args(arguments)
    if options.artefact:
        return _score_faces(options)
    if len(options.sources) != 2:
        raise ClusterError(f"{len(options.sources)} folders: name npz outputs and their pack, or --artefact")
    outputs, pack = map(Path, options.sources)
    out = Path(options.out) if options.out else None
    return score_npz(outputs, pack, options.unnamed, options.outside, out)


def _score_faces(options: argparse.Namespace) -> int:
    """Restore and score faces; write parts, summary and report."""
    cluster, folder = cluster_of(options), resolve_path(options.artefact)
    if not options.out:
        raise ClusterError("--out: name the folder or address for the results")
    options.out, artefact = absolute(options.out), read_artefact(folder)
    task = options.task or artefact.task
    if not task:
        raise ClusterError(
            f"--task: {folder / MANIFEST_FILE} does not say what the network was trained for; name it"
        )
    colour = even_colour(
        options.calib_dir, options.calib_size, options.seed, task, (artefact.in_size, artefact.out_size)
    )
    packed = Packed.of(folder)
    size = options.batch_size * max(1, options.unit // options.batch_size)
    settings: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("device", "batch_size", "seed", "most_megapixels", "limit", "write")
    }
    settings |= {
        "sources": options.sources,
        "artefact": packed.digest,
        "task": task,
        "colour": colour,
        "unit": size,
    }
    job = ScoreJob(
        options.out, size, options.write, fingerprint(settings), packed, options.device, options.batch_size,
        task, options.seed, colour, options.most_megapixels,
    )  # fmt: skip
    parts = run_parts(job, options.sources, cluster, settings, options.limit)
    store, about = Store(options.out), {name: settings[name] for name in ("task", "device", "batch_size")}
    about = {"sources": ", ".join(options.sources), "artefact": folder.name, "dtype": artefact.dtype, **about}
    summary = merge_parts(store, parts, about | {"colour of the chroma baseline": colour[0]})
    for name in ("psnr", "ssim", "psnr_input", "ssim_input") if summary["images"] else ():
        figure = summary["figures"][name]
        print("{:11} {mean:8.4f}  from {low:.4f} to {high:.4f}".format(name, **figure))
    print(f"wrote {store.path(SUMMARY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
