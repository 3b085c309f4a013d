"""Folders of photographs and frames of films: read, enhanced and written in overlapping steps, in order."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gpenlib.data.faces import DataError, few, file_digest, picture_files, whole_photographs
from gpenlib.data.pairs import distinct_stems
from gpenlib.data.tasks import BlindDegradation
from gpenlib.files import StorageError, check_utf8, read_json, require, resolve_path, write_json, write_text
from gpenlib.images import (
    HEIF_SUFFIXES,
    MOST_MP,
    SUFFIXES,
    Image,
    ImageError,
    Picture,
    open_picture,
    resize,
    to_grey,
    to_seen,
    write_image,
    write_picture,
)
from gpenlib.infer import Runtime, open_runtime
from gpenlib.jobs import AHEAD, Journal, ahead, progress
from gpenlib.photos.enhance import EnhancedPhoto, colours, enhance_photo, is_monochrome, split_channels
from gpenlib.photos.find import (
    CenterFace,
    Detector,
    PhotoFace,
    YuNet,
    choose_faces,
    ffhq_landmarks,
    find_faces,
    look_again,
    same_face,
)
from gpenlib.photos.upscale import TiledUpscaler
from gpenlib.settings import PhotoSettings

FULL_LOOK = 12  # frames after which new faces are looked for
JITTER = 0.05  # of a square's side: points that move less follow slowly, others at once
SLOWEST = 0.1  # part of the way that a point follows at least from frame to frame
# How the examples to restore are degraded: as a small, grainy print that was saved as a JPEG
WORN = BlindDegradation(
    side=512, blur=(0.8, 1.2), motion=(0, 0), factor=(2.0, 2.0), noise=(5, 5), quality=(60, 60)
)
FACES = "faces"  # folder of the crops


def photo_files(photos: Sequence[str | Path]) -> list[Path]:
    """Return the pictures that paths name: files as they are given, folders in natural order."""
    files: list[Path] = []
    for photo in map(Path, photos):
        check_utf8(photo, DataError)
        if not photo.exists():
            hint = "paths that are not absolute count from the root of the repository"
            raise DataError(f"{photo}: no such file or folder of photographs ({hint})")
        if not photo.is_dir() and not photo.is_file():
            raise DataError(f"{photo} is a pipe, socket or device: name picture files and folders")
        files += picture_files(photo, (*SUFFIXES, *HEIF_SUFFIXES)) if photo.is_dir() else [photo]
    if not files:
        raise DataError(f"{', '.join(map(str, photos)) or 'photos'}: holds no picture")
    return files


def given_files(photos: Sequence[str]) -> list[Path]:
    """Return the user's pictures; none if none are named, and the examples are to be taken."""
    return photo_files([resolve_path(name) for name in photos]) if photos else []


def source_files(settings: PhotoSettings) -> list[Path]:
    """Return the user's pictures, and the files of what enlarges them and finds faces."""
    others = (settings.upscaler, settings.detector)
    return [*given_files(settings.photos), *(resolve_path(name) for name in others if name)]


def source_digests(settings: PhotoSettings) -> dict[str, str]:
    """Return digests of everything that is read; what cannot be read counts by its name."""
    digests: dict[str, str] = {}
    for path in source_files(settings):
        try:
            digests[str(path)] = file_digest(path, settings.most_megapixels)
        except (OSError, ImageError) as error:
            digests[str(path)] = f"unreadable: {type(error).__name__}"
    return digests


class FrameFinder:
    """Finds faces in the frames of a film: those that are known are looked at again, and held still."""

    def __init__(self, detector: Detector, state: Mapping[str, Any] | None = None) -> None:
        self._detector, self._faces, self._count = detector, list[PhotoFace](), 0
        if state:
            known = [(np.array(face["points"], face["type"]), face["score"]) for face in state["faces"]]
            self._faces = [PhotoFace(points, score, ffhq_landmarks(points)) for points, score in known]
            self._count = state["count"]

    def state(self) -> dict[str, Any]:
        """Return what is known after the last frame, as plain values to go on from."""
        faces = [
            {"points": face.points.tolist(), "type": face.points.dtype.name, "score": float(face.score)}
            for face in self._faces
        ]
        return {"faces": faces, "count": self._count}

    def __call__(self, frame: Image) -> list[PhotoFace]:
        """Return the faces of the next frame, uint8 RGB [H, W, 3]."""
        again = [look_again(frame, self._detector, face) for face in self._faces]
        faces = [face for face in again if face is not None]
        if self._count % FULL_LOOK == 0 or len(faces) < len(self._faces):
            for face in find_faces(frame, self._detector, enlarged=1.0):
                if not any(same_face(face, known) for known in faces):
                    # Looked at as in the next frames: another look has other errors, which would show
                    faces.append(look_again(frame, self._detector, face) or face)
        self._count += 1
        self._faces = sorted(map(self._steady, faces), key=lambda face: face.side, reverse=True)
        return self._faces

    def _steady(self, face: PhotoFace) -> PhotoFace:
        """Return a face on its way from where it was: noise moves it little, a movement wholly."""
        before = next((known for known in self._faces if same_face(known, face)), None)
        if before is None:
            return face
        moved = float(np.abs(face.points - before.points).max()) / face.side
        share = float(np.clip((moved / JITTER) ** 2, SLOWEST, 1))
        points = before.points + share * (face.points - before.points)
        return PhotoFace(points, face.score, ffhq_landmarks(points))


@dataclass(eq=False)
class PhotoResult:
    """What became of one picture file."""

    path: Path
    name: str  # of the files that are made of it, without suffix
    error: str = ""  # why it could not be enhanced; empty if it could
    weights: str = ""  # which network was taken
    made: dict[str, EnhancedPhoto] = field(default_factory=dict)  # by dtype
    files: dict[str, Path] = field(default_factory=dict)  # by dtype
    crops: set[Path] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)  # by step
    found: list[PhotoFace] = field(default_factory=list)
    picture: Picture | None = None  # only while it is worked on
    seen: Image | None = None
    monochrome: bool = False
    state: dict[str, Any] | None = None  # of the finder of frames, after this one


Networks = Mapping[str, Mapping[str, Runtime]]  # by weights, then by dtype
Step = Callable[[PhotoResult], None]


def enhance_files(
    files: Sequence[Path],
    networks: Networks,
    folder: Path,
    *,
    frames: bool = False,
    detector: Detector | None = None,
    finished: Journal | None = None,
    most_megapixels: float = MOST_MP,
    names: Sequence[str] | None = None,
    crops: bool = True,
    **options: Any,
) -> Iterator[PhotoResult]:
    """Enhance picture files; ``folder/<dtype>`` gets the results under the original names.

    With several networks a black-and-white photograph goes to the first that colours, another to the first
    that restores. A network that colours leaves photographs that have colours as they are, unless ``task``
    asks for it. ``options`` are those of :func:`gpenlib.enhance_photo`; the faces' crops, if asked for, go to
    ``folder/faces``. A picture that cannot be read or used does not stop the others: its result says why.
    Those that a journal names are passed over (see :func:`rows_of`); frames go on with the faces known there.
    ``names`` are those of the results, where the files are some of many.
    """
    named = dict(zip(names or distinct_stems(file.name for file in files), files, strict=True))
    state = None
    if finished is not None:  # in order: each frame depends on the one before it
        finished.keep(takewhile(finished.finished.__contains__, named))
        known = [entry["state"] for entry in finished.finished.values() if entry["state"]]
        state = known[-1] if known else None
    # Where several pictures are on their way, one thread a step is the better use of the processor
    detector = detector or CenterFace(threads=1 if len(files) > AHEAD else None)
    which, aligned = options.pop("faces", "all"), bool(options.get("aligned"))
    tracker = FrameFinder(detector, state) if frames else None
    finder = tracker or partial(find_faces, detector=detector)

    def read(result: PhotoResult) -> None:
        result.picture = open_picture(result.path, most_megapixels)

    def find(result: PhotoResult) -> None:
        assert result.picture is not None
        result.seen = to_seen(result.picture.pixels, result.picture.alpha)
        result.found = [] if aligned else choose_faces(finder(result.seen), which)
        result.state = tracker.state() if tracker else None
        result.monochrome = is_monochrome(result.seen, result.found)
        result.weights = suited(networks, result.monochrome)

    def enhance(result: PhotoResult) -> None:
        assert result.picture is not None
        pixels, alpha = result.picture.pixels, result.picture.alpha
        given = pixels if alpha is None else np.dstack([pixels, alpha])
        faces: Any = "all" if aligned else result.found
        for dtype, runtime in networks[result.weights].items():
            leave = colours(runtime) and not (result.monochrome or options.get("task"))
            how = options | {"strength": 0.0} if leave else options
            made = enhance_photo(given, runtime, faces=faces, monochrome=result.monochrome, **how)
            result.made[dtype] = _left_in_colour(made) if leave else made

    def write(result: PhotoResult) -> None:
        assert result.picture is not None
        for dtype, made in result.made.items():
            pixels, alpha = split_channels(made.image)
            result.files[dtype] = write_picture(folder / dtype / result.name, result.picture, pixels, alpha)
            for number, face in enumerate(made.faces if crops else ()):
                for label, crop in {"input": face.shown, dtype: face.output}.items():
                    if crop is not None:
                        path = folder / FACES / f"{result.name}_{number}_{label}.png"
                        result.crops.add(write_image(path, crop))
            faces = [replace(face, shown=None, output=None) for face in made.faces]
            result.made[dtype] = replace(made, image=made.image[:0].copy(), faces=faces)  # on disk now
        result.picture = result.seen = None

    left = {name: path for name, path in named.items() if finished is None or name not in finished.finished}
    results: Iterable[PhotoResult] = map(PhotoResult, left.values(), left)
    for step in (read, find, enhance, write):
        results = ahead(results, partial(_guarded, step))
    yield from results


def _guarded(step: Step, result: PhotoResult) -> PhotoResult:
    """Do one step of a picture; what goes wrong is noted in it."""
    if not result.error:
        started = time.perf_counter()
        try:
            step(result)
        except StorageError:
            raise  # no picture's fault: the next one would fail as well
        except (ImageError, OSError, ValueError, MemoryError) as error:
            # The name stands beside the reason already
            text = str(error).removeprefix(str(result.path)).lstrip(": ")
            result.error = text or type(error).__name__
            result.picture = result.seen = None
        result.seconds[step.__name__] = time.perf_counter() - started
    return result


def suited(networks: Networks, monochrome: bool) -> str:
    """Return the weights for a photograph: the first that colours if it is black and white, or restores."""
    fitting = (
        name for name, runtimes in networks.items() if colours(next(iter(runtimes.values()))) == monochrome
    )
    return next(fitting, next(iter(networks)))


def _left_in_colour(made: EnhancedPhoto) -> EnhancedPhoto:
    """Say why a photograph is as it was: it has colours, and the network would give others."""
    done = "left as it was: the photograph has colours (task=color gives it others)"
    faces = [replace(face, done=done) for face in made.faces]
    found = "1 face was found" if len(faces) == 1 else f"{len(faces)} faces were found"
    note = f"the photograph has colours and is as it was; {found}"
    return replace(made, faces=faces, note=note if faces else made.note)


def rows_of(results: Iterable[PhotoResult], folder: Path, finished: Journal | None = None) -> dict[str, Any]:
    """Return what was made as plain values: ``photos``, ``faces`` (a row per dtype), ``failures``, ``note``.

    ``source`` and ``file`` are paths, relative to ``folder`` where they lie in it; ``square`` holds corners
    (top left, bottom left, bottom right, top right) and ``points`` both eyes, nose and both corners of the
    mouth, in pixels of the photograph; ``<step>_s`` are seconds. A journal of ``folder`` gets every picture
    when its files are written; what it held before comes first.
    """
    entries = dict(finished.finished) if finished is not None else {}
    for result in results:
        entry = entry_of(result, folder)
        if finished is not None:
            entry = finished.add(result.name, entry, {*result.files.values(), *result.crops})
        entries[result.name] = entry
    rows = {
        kind: [row for entry in entries.values() for row in entry[kind]]
        for kind in ("photos", "faces", "failures")
    }
    without, count = {row["photo"] for row in rows["photos"] if not row["faces"]}, len(entries)
    parts = [
        f"{count} picture{'s' if count != 1 else ''}",
        f"{len(rows['failures'])} could not be used" if rows["failures"] else "",
        f"no face was found in {len(without)}" if without else "",
    ]
    return {**rows, "note": "; ".join(filter(None, parts))}


def enhance_run(
    settings: Any,
    artefacts: Mapping[str, Mapping[str, Path]],
    folder: Path,
    finished: Journal,
    work_on: Callable[..., Iterator[PhotoResult]],
) -> dict[str, Any]:
    """Enhance the photographs of a run, or examples, into its folder; return and write ``results.json``.

    ``settings`` are those that 07_photos declares, ``artefacts`` its networks by weights and dtype, and
    ``work_on`` is :func:`enhance_files`, or does the same elsewhere.
    """
    s, own = settings, given_files(settings.photos)
    # Where several pictures are on their way, one thread a step is the better use of the processor
    threads = 1 if len(own) > AHEAD and s.device == "cpu" else None
    networks = {
        weights: {d: open_runtime(path, threads, s.device, chroma=s.chroma) for d, path in dtypes.items()}
        for weights, dtypes in artefacts.items()
    }
    files = own or write_examples(folder / "examples", networks)
    names = ("strength", "faces", "upscale", "reach", "aligned", "frames", "most_megapixels")
    options = {name: getattr(s, name) for name in names} | {"task": s.asked_task}
    if s.upscaler:
        options["upscaler"] = TiledUpscaler(resolve_path(s.upscaler))
    if s.detector:
        options["detector"] = YuNet(resolve_path(s.detector))
    made = work_on(files, networks, folder, finished=finished, **options)
    shown = progress(made, total=len(files), desc="photographs", unit="photo")
    results = rows_of(shown, folder, finished)
    if results["failures"]:
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in results["failures"])
        write_text(folder / "failures.jsonl", lines)
    folders = [path for path in map(resolve_path, s.photos) if path.is_dir()]
    inner = [path.name for outer in folders for path in sorted(outer.iterdir()) if path.is_dir()]
    if inner:
        results["note"] += f"; sub-folders were passed over: {few(inner)}"
    write_json(folder / "results.json", results)
    return results


def entry_of(result: PhotoResult, folder: Path) -> dict[str, Any]:
    """Return the rows of one picture, and the state of the finder of frames behind it."""
    if result.error:
        failure = {"photo": str(result.path), "reason": result.error}
        return {"photos": [], "faces": [], "failures": [failure], "state": result.state}
    photos, faces = list[dict[str, Any]](), list[dict[str, Any]]()

    def place(path: Path) -> str:
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)

    spent = {f"{step}_s": round(seconds, 4) for step, seconds in result.seconds.items()}
    for dtype, made in result.made.items():
        head = {"photo": result.path.name, "weights": result.weights, "dtype": dtype}
        times = {f"{step}_s": round(s, 4) for step, s in made.seconds.items() if step != "find"}
        paths = {"source": place(result.path), "file": place(result.files[dtype])}
        photos.append({**head, **paths, "faces": len(made.faces), "note": made.note, **spent, **times})
        for number, face in enumerate(made.faces):
            row = {**head, "file": paths["file"], "face": number, "done": face.done}
            row |= {"side_px": round(face.side, 1), "score": round(face.score, 3)}
            row |= {name: getattr(face, name).round(1).tolist() for name in ("square", "points")}
            faces.append(row | ({"crops": f"{FACES}/{result.name}_{number}"} if result.crops else {}))
    return {"photos": photos, "faces": faces, "failures": [], "state": result.state}


@dataclass(frozen=True, eq=False)
class ShownPhoto:
    """A photograph to look at, reduced to a size for the screen."""

    name: str
    before: Image
    after: dict[str, Image]  # by dtype
    note: str
    squares: list[Any]  # of its faces, in pixels of these pictures


def open_shown(
    results: Mapping[str, Any], folder: Path, most: int = 6, longest: int = 1000
) -> list[ShownPhoto]:
    """Read the first ``most`` photographs of a stage's results and what was made of them."""
    shown: dict[str, ShownPhoto] = {}
    for row in results["photos"]:
        key = row["source"]
        if key not in shown:
            if len(shown) == most:
                continue
            picture = open_picture(folder / key, math.inf)  # the stage has looked at its size
            before = _reduced(to_seen(picture.pixels, picture.alpha), longest)
            scale = before.shape[1] / picture.pixels.shape[1]
            own = [f for f in results["faces"] if f["file"] == row["file"]]
            squares = [scale * np.asarray(face["square"]) for face in own]
            taken = [photo.name for photo in shown.values()]
            name = Path(row["file"]).name if row["photo"] in taken else row["photo"]
            shown[key] = ShownPhoto(name, before, {}, row["note"], squares)
        made = open_picture(folder / row["file"], math.inf)
        shown[key].after[row["dtype"]] = _reduced(to_seen(made.pixels, made.alpha), longest)
    return list(shown.values())


def before_and_after(path: Path, made: EnhancedPhoto, label: str, longest: int = 1000) -> dict[str, Image]:
    """Return a picture file and what was made of it, to look at: ``before`` and ``label``."""
    picture = open_picture(path, math.inf)
    after = split_channels(made.image)
    pictures = {"before": to_seen(picture.pixels, picture.alpha), label: to_seen(*after)}
    return {name: _reduced(image, longest) for name, image in pictures.items()}


def _reduced(image: Image, longest: int) -> Image:
    scale = min(1.0, longest / max(image.shape[:2]))
    return resize(image, (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0]))))


def write_examples(folder: Path, networks: Networks) -> list[Path]:
    """Write two public-domain photographs as old ones: black and white to colour, degraded to restore."""
    tasks = {colours(next(iter(runtimes.values()))) for runtimes in networks.values()}
    files = []
    for number, (name, photograph) in enumerate(whole_photographs().items()):
        kinds = {"black_and_white": to_grey(photograph)} if True in tasks else {}
        if False in tasks:
            kinds["degraded"] = WORN(photograph, np.random.default_rng(number))
        for kind, picture in kinds.items():
            files.append(write_image(folder / f"{name}_{kind}.png", picture))
    return files


def check_results(
    results: Mapping[str, Any], manifest: Mapping[str, Any], upscale: int, most: int = 50
) -> None:
    """Refuse results of 07 that differ from their file, miss a picture, or have another size."""
    folder, rows, sizes = Path(manifest["folder"]), results["photos"], []
    for row in rows[:most]:
        source, made = (open_picture(folder / row[name], math.inf).pixels for name in ("source", "file"))
        sizes.append(
            made.shape[0] == upscale * source.shape[0] and made.shape[1] == upscale * source.shape[1]
        )
    require({
        "results.json is what the manifest says": read_json(folder / "results.json") == results,
        "every result is listed and on disk": all(row["file"] in manifest["outputs"] for row in rows),
        "there is a result in every precision": len(rows) % max(1, len({r["dtype"] for r in rows})) == 0,
        "results have the photographs' sizes": all(sizes),
    })  # fmt: skip
