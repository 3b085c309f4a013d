"""``python -m gpenlib photos``: photographs of any number enhanced as 07_photos does."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
    run_parts,
    spread,
)
from gpenlib.cluster.sources import Item, Store
from gpenlib.cluster.sums import FAILURES, SUMMARY, rows_of_parts
from gpenlib.data.pairs import distinct_stems
from gpenlib.files import StorageError, fingerprint, resolve_path, sha256
from gpenlib.images import in_short
from gpenlib.infer.runtime import read_artefact
from gpenlib.jobs import Journal, command
from gpenlib.photos.find import CenterFace, YuNet
from gpenlib.photos.folder import FACES, Networks, PhotoResult, enhance_files, entry_of
from gpenlib.photos.upscale import TiledUpscaler

SPAN = 8  # photographs that a worker is given at a time by a notebook
Artefacts = Mapping[str, Mapping[str, Packed]]  # by weights, then by dtype
Carried = tuple[PhotoResult, Files]  # what became of a picture, and its files
KINDS: dict[str, Callable[[Path], Any]] = {"upscaler": TiledUpscaler, "detector": YuNet}


@dataclass(frozen=True)
class _Enhancer:
    """What enhances some photographs into files: the networks, and how."""

    artefacts: Artefacts
    device: str
    options: Mapping[str, Any]  # of enhance_files

    def open(self, threads: int | None) -> Callable[[Sequence[Path], Sequence[str]], Iterator[Carried]]:
        """Return the function that enhances files under names."""
        networks: Networks = {
            weights: {dtype: packed.open(threads or 1, self.device) for dtype, packed in dtypes.items()}
            for weights, dtypes in self.artefacts.items()
        }
        options = {"detector": None, **self.options}
        options["detector"] = options["detector"] or CenterFace(threads=1)

        def work(files: Sequence[Path], names: Sequence[str]) -> Iterator[Carried]:
            with tempfile.TemporaryDirectory() as name:
                scratch = Path(name)
                for result in enhance_files(files, networks, scratch, names=names, **options):
                    yield _carried(result, scratch)

        return work


def _carried(result: PhotoResult, scratch: Path) -> Carried:
    """Return a result without its pictures, and its files, by their paths below the results."""
    written = sorted({*result.files.values(), *result.crops})
    files = {path.relative_to(scratch).as_posix(): path.read_bytes() for path in written}
    for path in written:
        path.unlink()
    made = {
        dtype: replace(
            photo,
            image=np.empty(0, np.uint8),
            faces=[replace(face, shown=None, output=None) for face in photo.faces],
        )
        for dtype, photo in result.made.items()
    }
    paths = {dtype: path.relative_to(scratch) for dtype, path in result.files.items()}
    crops = {path.relative_to(scratch) for path in result.crops}
    return replace(result, files=paths, crops=crops, made=made, picture=None, seen=None), files


# Notebook 07: photographs of a run; results come back to this process, which writes them as it always does.


@dataclass(frozen=True)
class _FilesJob:
    """Enhances picture files that every worker can read."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    enhancer: _Enhancer

    def open(self, threads: int | None) -> Callable[[range, Attempt], list[Carried]]:
        enhance = self.enhancer.open(threads)

        def work(span: range, attempt: Attempt) -> list[Carried]:
            done: list[Carried] = []
            for turn, _ in attempt.turns(span, 1):
                some = span[turn.start : turn.stop]
                if attempt.blamed.intersection(some):
                    done += [(PhotoResult(self.files[i], self.names[i], DIED), {}) for i in some]
                else:
                    done += enhance([self.files[i] for i in some], [self.names[i] for i in some])
            return done

        return work


def enhance_on_cluster(
    files: Sequence[Path], networks: Networks, folder: Path, *, finished: Journal, **options: Any
) -> Iterator[PhotoResult]:
    """Do what :func:`gpenlib.photos.folder.enhance_files` does on a Ray cluster, with the same artefacts."""
    names = distinct_stems(file.name for file in files)
    finished.keep(names)
    left = [place for place, name in enumerate(names) if name not in finished.finished]
    device = next(runtime.device for dtypes in networks.values() for runtime in dtypes.values())
    packed = {
        weights: {dtype: Packed.of(runtime.path.parent, runtime.chroma) for dtype, runtime in dtypes.items()}
        for weights, dtypes in networks.items()
    }
    options.pop("frames")  # they follow one another, and are refused before
    job = _FilesJob(
        tuple(files[place].absolute() for place in left),
        tuple(names[place] for place in left),
        _Enhancer(packed, device, options),
    )
    units = partial(Spans, len(left), SPAN, tuple(range(-(-len(left) // SPAN))))
    results = spread(job, units, Cluster(gpus=None if device == "cpu" else 1.0), ordered=True)
    next(results)
    store = Store(str(folder))
    for made in results:
        for result, written in made:
            for path, data in written.items():
                store.write(path, data)
            paths = {dtype: folder / path for dtype, path in result.files.items()}
            yield replace(result, files=paths, crops={folder / path for path in result.crops})


# The command: photographs of any source, results as parts.


@dataclass(frozen=True)
class PhotoJob(PartJob):
    """Enhances photographs of a source."""

    enhancer: _Enhancer
    crops: bool

    def schema(self) -> Any:
        """Return the columns of rows."""
        import pyarrow as pa

        text = ("name", "source", "failure", "weights", "note", "made", "faces")
        return pa.schema([*(pa.field(name, pa.string()) for name in text), pa.field("place", pa.int64())])

    def start(self, threads: int | None) -> Callable[[Sequence[Item], Attempt], Made]:
        """Return the function that makes rows and files of some pictures."""
        enhance = self.enhancer.open(threads)

        def make(items: Sequence[Item], attempt: Attempt) -> Made:
            for turn, _ in attempt.turns([item.place for item in items], 1):
                yield from self._enhanced(items[turn.start : turn.stop], attempt.blamed, enhance)

        return make

    def _enhanced(
        self, items: Sequence[Item], blamed: frozenset[int], enhance: Callable[..., Iterator[Carried]]
    ) -> Made:
        faults: dict[int, str] = dict.fromkeys(blamed, DIED)
        paths: dict[int, Path] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for item in items:
                try:
                    paths[item.place] = item.file(Path(scratch))
                except StorageError:
                    raise
                except (OSError, ValueError) as error:
                    faults[item.place] = in_short(error)
            some = [item for item in items if item.place not in faults]
            made = enhance([paths[item.place] for item in some], [item.stem for item in some])
            for item in items:
                if item.place in faults:
                    yield item.row(faults[item.place]), {}
                else:
                    yield self._entry(item, *next(made))

    def _entry(self, item: Item, result: PhotoResult, files: Files) -> tuple[dict[str, Any], Files]:
        """Return the row of a picture, and the files that are kept of it."""
        if result.error:
            return item.row(result.error), {}
        entry = entry_of(result, Path())
        notes = "; ".join(dict.fromkeys(row["note"] for row in entry["photos"]))
        made = json.dumps([item.inside(row["file"]) for row in entry["photos"]])
        crops = () if self.crops else [path for path in files if path.startswith(f"{FACES}/")]
        kept = {item.inside(path): data for path, data in files.items() if path not in crops}
        told = {"weights": result.weights, "note": notes, "made": made, "faces": json.dumps(entry["faces"])}
        return item.row() | told, kept


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Restore or colour every face of photographs, and put the faces back; any number, from anywhere.

    Results keep their names: OUT/DTYPE/NAME, a row for each in OUT/parts, what failed in failures.jsonl.
    """
    parser = argparse.ArgumentParser(prog="python -m gpenlib photos", description=main.__doc__)
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTOS",
        help="pictures: folders, files, Parquet, shards, fsspec addresses",
    )
    parser.add_argument(
        "--artefact",
        action="append",
        required=True,
        help="folder of a compiled network; twice: each photograph gets the one that suits it",
    )
    parser.add_argument("--out", required=True, help="folder or fsspec address of the results")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0 to 1; 0 leaves photographs as they are"
    )
    parser.add_argument(
        "--faces", default="all", help="all, largest, a number, or a smallest side such as 64px"
    )
    parser.add_argument(
        "--upscale", type=int, choices=(1, 2, 4), default=1, help="enlarges whole photographs"
    )
    parser.add_argument("--upscaler", help="ONNX file of a super-resolution network")
    parser.add_argument("--reach", type=float, default=2.4, help="sides of a face's square that are coloured")
    parser.add_argument("--aligned", action="store_true", help="every picture is the square of one face")
    parser.add_argument("--task", help="color: photographs that have colours, too")
    parser.add_argument("--detector", help="ONNX file of YuNet in place of CenterFace")
    parser.add_argument("--crops", action="store_true", help="the faces' crops, too")
    add_arguments(parser, 64)
    options = parser.parse_args(arguments)
    cluster, options.out = cluster_of(options), absolute(options.out)
    names = ("strength", "faces", "upscale", "reach", "aligned", "task", "most_megapixels")
    how: dict[str, Any] = {name: getattr(options, name) for name in names}
    files = {name: resolve_path(path) for name in KINDS if (path := getattr(options, name))}
    onnx = {name: KINDS[name](path) for name, path in files.items()}
    artefacts: dict[str, dict[str, Packed]] = {}
    for folder in map(resolve_path, options.artefact):
        dtype = read_artefact(folder).dtype
        artefacts[f"{folder.parent.name}/{folder.name}"] = {dtype: Packed.of(folder)}
    if len(artefacts) < len(options.artefact):
        raise ClusterError(
            f"--artefact {' '.join(options.artefact)}: named twice, or folders of the same name"
        )
    settings = how | {name: getattr(options, name) for name in ("device", "limit", "write", "crops", "unit")}
    settings |= {
        "sources": options.photos,
        "networks": {k: [p.digest for p in v.values()] for k, v in artefacts.items()},
    }
    settings |= {name: sha256(path) for name, path in files.items()}
    job = PhotoJob(
        options.out, options.unit, options.write, fingerprint(settings),
        _Enhancer(artefacts, options.device, how | onnx), options.crops,
    )  # fmt: skip
    parts = run_parts(job, options.photos, cluster, settings, options.limit)
    store, failures = Store(options.out), list[str]()
    counts = {"pictures": 0, "failures": 0, "without_a_face": 0}
    for row in rows_of_parts(store, parts(), ["name", "source", "failure", "faces"]):
        counts["pictures"] += 1
        counts["without_a_face"] += row.pop("faces") == "[]"
        if row["failure"]:
            failures.append(json.dumps(row, ensure_ascii=False))
    counts["failures"] = len(failures)
    store.write(FAILURES, "".join(f"{line}\n" for line in failures).encode())
    store.write(SUMMARY, (json.dumps(counts, indent=1) + "\n").encode())
    print(f"wrote {store.path(SUMMARY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
