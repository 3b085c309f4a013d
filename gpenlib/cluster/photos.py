"""``python -m gpenlib photos``: photographs of any number enhanced as 07_photos does."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
    run_parts,
)
from gpenlib.cluster.sources import Item, Store
from gpenlib.cluster.sums import SUMMARY, failures_in, tables_of_parts, write_summary
from gpenlib.data.pairs import distinct_stems
from gpenlib.files import fingerprint, resolve_path, sha256
from gpenlib.jobs import Journal, command
from gpenlib.photos.find import CenterFace, YuNet
from gpenlib.photos.folder import Networks, PhotoResult, enhance_files, entry_of
from gpenlib.photos.upscale import TiledUpscaler
from gpenlib.settings import PhotoSettings

SPAN = 8  # photographs that a worker is given at a time by a notebook
Artefacts = Mapping[str, Mapping[str, Packed]]  # by weights, then by dtype
KINDS: dict[str, Callable[[Path], Any]] = {"upscaler": TiledUpscaler, "detector": YuNet}


def open_enhancer(
    threads: int | None, artefacts: Artefacts, device: str, options: Mapping[str, Any]
) -> Callable[[Sequence[Path], Sequence[str]], Made]:
    """Return the function that enhances picture files under names, as :func:`enhance_files`."""
    networks: Networks = {
        weights: {dtype: packed.open(threads or 1, device) for dtype, packed in dtypes.items()}
        for weights, dtypes in artefacts.items()
    }
    options = {**options, "detector": options.get("detector") or CenterFace(threads=1)}

    def enhance(files: Sequence[Path], names: Sequence[str]) -> Made:
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            for result in enhance_files(files, networks, scratch, names=names, **options):
                written = {*result.files.values(), *result.crops}
                made = {p.relative_to(scratch).as_posix(): p.read_bytes() for p in sorted(written)}
                for path in written:
                    path.unlink()
                yield _moved(result, lambda path: path.relative_to(scratch)), made

    return enhance


def _moved(result: PhotoResult, move: Callable[[Path], Path]) -> PhotoResult:
    """Return a result whose files lie in another place."""
    files = {dtype: move(path) for dtype, path in result.files.items()}
    return replace(result, files=files, crops={move(path) for path in result.crops})


# Notebook 07: photographs of a run; results come back to this process, which writes them as it always does.


def enhance_on_cluster(
    files: Sequence[Path], networks: Networks, folder: Path, *, finished: Journal, **options: Any
) -> Iterator[PhotoResult]:
    """Do what :func:`gpenlib.photos.folder.enhance_files` does on a Ray cluster, with the same artefacts.

    The journal is that of ``folder``.
    """
    named = dict(zip(distinct_stems(file.name for file in files), files, strict=True))
    finished.keep(named)
    names = [name for name in named if name not in finished.finished]
    paths = [named[name].absolute() for name in names]
    device = next(runtime.device for dtypes in networks.values() for runtime in dtypes.values())
    packed = {
        weights: {dtype: Packed.of(runtime.path.parent, runtime.chroma) for dtype, runtime in dtypes.items()}
        for weights, dtypes in networks.items()
    }
    options.pop("frames")  # they follow one another, and are refused before

    def start(threads: int | None) -> Make:
        enhance = open_enhancer(threads, packed, device, options)
        return lambda places, _: enhance([paths[i] for i in places], [names[i] for i in places])

    def died(place: int) -> tuple[PhotoResult, Files]:
        return PhotoResult(paths[place], names[place], DIED), {}

    for _, result, _ in gather(start, names, SPAN, 1, finished, device, died):
        yield _moved(result, lambda path: folder / path)


# The command: photographs of any source, results as parts.


@dataclass(frozen=True)
class PhotoJob(PartJob):
    """Enhances photographs of a source."""

    artefacts: Artefacts
    device: str
    options: Mapping[str, Any]  # of enhance_files
    columns: ClassVar = {
        **dict.fromkeys(("name", "source", "failure", "weights", "note", "made", "faces"), "string"),
        "place": "int64",
    }

    def start(self, threads: int | None) -> Make:
        """Return the function that makes rows and files of some pictures."""
        enhance = open_enhancer(threads, self.artefacts, self.device, self.options)

        def make(given: list[tuple[Item, Path]], _: int) -> Made:
            made = enhance([path for _, path in given], [item.stem for item, _ in given])
            return (self._entry(item, *each) for (item, _), each in zip(given, made, strict=True))

        return make

    def _entry(self, item: Item, result: PhotoResult, files: Files) -> tuple[dict[str, Any], Files]:
        """Return the row of a picture, and the files that are kept of it."""
        if result.error:
            return item.row(result.error), {}
        entry = entry_of(result, Path())
        notes = "; ".join(dict.fromkeys(row["note"] for row in entry["photos"]))
        made = json.dumps([item.inside(row["file"]) for row in entry["photos"]])
        kept = {item.inside(path): data for path, data in files.items()}
        told = {"weights": result.weights, "note": notes, "made": made, "faces": json.dumps(entry["faces"])}
        return item.row() | told, kept


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Restore or colour every face of photographs, and put the faces back; any number, from anywhere.

    Results keep their names: OUT/DTYPE/NAME, a row for each in OUT/parts, what failed in failures.jsonl.
    """
    parser = argparse.ArgumentParser(prog="python -m gpenlib photos", description=main.__doc__)
    add = parser.add_argument
    about = "pictures: folders, files, Parquet, shards, fsspec addresses"
    add("photos", nargs="+", metavar="PHOTOS", help=about)
    about = "folder of a compiled network; twice: each photograph gets the one that suits it"
    add("--artefact", action="append", required=True, help=about)
    add("--out", required=True, help="folder or fsspec address of the results")
    add("--strength", type=float, default=1.0, help="0 to 1; 0 leaves photographs as they are")
    add("--faces", default="all", help="all, largest, a number, or a smallest side such as 64px")
    add("--upscale", type=int, choices=(1, 2, 4), default=1, help="enlarges whole photographs")
    add("--upscaler", help="ONNX file of a super-resolution network")
    add("--reach", type=float, default=2.4, help="sides of a face's square that are coloured")
    add("--aligned", action="store_true", help="every picture is the square of one face")
    add("--task", help="color: photographs that have colours, too")
    add("--detector", help="ONNX file of YuNet in place of CenterFace")
    add("--crops", action="store_true", help="the faces' crops, too")
    add_arguments(parser, 64)
    options = parser.parse_args(arguments)
    cluster, out = cluster_of(options), absolute(options.out)
    names = ("strength", "faces", "upscale", "reach", "aligned", "task", "most_megapixels", "crops")
    how: dict[str, Any] = {name: getattr(options, name) for name in names}
    checked = {name: getattr(options, name) for name in (*names[:-1], "upscaler")}
    PhotoSettings.parse({name: value for name, value in checked.items() if value is not None}, "options")
    files = {name: resolve_path(path) for name in KINDS if (path := getattr(options, name))}
    onnx = {name: KINDS[name](path) for name, path in files.items()}
    artefacts: dict[str, dict[str, Packed]] = {}
    for folder in map(resolve_path, options.artefact):
        packed = Packed.of(folder)
        artefacts[f"{folder.parent.name}/{folder.name}"] = {packed.about.dtype: packed}
    if len(artefacts) < len(options.artefact):
        told = "named twice, or folders of the same name"
        raise ClusterError(f"--artefact {' '.join(options.artefact)}: {told}")
    settings = how | {name: getattr(options, name) for name in ("device", "limit", "write", "unit")}
    digests = {name: [each.digest for each in dtypes.values()] for name, dtypes in artefacts.items()}
    settings |= {"sources": options.photos, "networks": digests}
    settings |= {name: sha256(path) for name, path in files.items()}
    job = PhotoJob(
        out, options.unit, options.write, fingerprint(settings), 1, artefacts, options.device, how | onnx
    )
    parts = run_parts(job, options.photos, cluster, settings, options.limit)
    store, failures = Store(out), list[dict[str, Any]]()
    counts = {"pictures": 0, "failures": 0, "without_a_face": 0}
    for table in tables_of_parts(store, parts, ["name", "source", "failure", "faces"]):
        failures += failures_in(table)
        counts["pictures"] += len(table)
        counts["without_a_face"] += table["faces"].to_pylist().count("[]")
    write_summary(store, counts | {"failures": len(failures)}, failures)
    print(f"wrote {store.path(SUMMARY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
