"""Where faces come from: folders of images, and sources joined to one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from gpenlib.images import SUFFIXES, Image, read_image
from gpenlib.run import sha256

CELEBA_FOLDER = "CelebA-HQ-img"  # the image folder inside a CelebAMask-HQ download


class DataError(ValueError):
    """A data set that cannot be used; the message names the folder and what it lacks."""


class ImageSource(Protocol):
    """An ordered collection of faces; images are read one at a time."""

    @property
    def label(self) -> str:
        """What to write beside scores on these images."""

    @property
    def names(self) -> Sequence[str]:
        """One distinct file-name-like word per image."""

    def read(self, index: int) -> Image:
        """Return image ``index`` as uint8 RGB [H, W, 3], in its own size."""

    def digest(self, index: int) -> str:
        """Return a hash of the content of image ``index``."""


@dataclass(frozen=True)
class FolderSource:
    """Images of one folder in natural order (2 before 10)."""

    paths: tuple[Path, ...]

    @property
    def label(self) -> str:
        """The folder's name."""
        return f"folder {self.paths[0].parent.name}" if self.paths else "empty"

    @property
    def names(self) -> Sequence[str]:
        """File names."""
        return [path.name for path in self.paths]

    def read(self, index: int) -> Image:
        """Decode one file; a damaged one raises ImageError with its path."""
        return read_image(self.paths[index])

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        return sha256(self.paths[index])


@dataclass(frozen=True)
class JoinedSource:
    """Two sources as one: the images of ``first``, then those of ``second``.

    Attributes
    ----------
    first, second : ImageSource
    label : str
        What scores on the whole mean.
    """

    first: ImageSource
    second: ImageSource
    label: str

    @property
    def names(self) -> Sequence[str]:
        """The names of both, in order."""
        return [*self.first.names, *self.second.names]

    def read(self, index: int) -> Image:
        """Return image ``index`` as uint8 RGB [H, W, 3]."""
        source, own = self._find(index)
        return source.read(own)

    def digest(self, index: int) -> str:
        """Return the content hash of image ``index``."""
        source, own = self._find(index)
        return source.digest(own)

    @cached_property
    def _counts(self) -> tuple[int, int]:
        """Numbers of images, counted once: a source may build its names anew whenever it is asked."""
        return len(self.first.names), len(self.second.names)

    def _find(self, index: int) -> tuple[ImageSource, int]:
        check_index(index, sum(self._counts), "image")
        split = self._counts[0]
        return (self.first, index) if index < split else (self.second, index - split)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key under which ``2.jpg`` comes before ``10.jpg``."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def open_folder(folder: str | Path, suffix: str | None = None) -> FolderSource:
    """List the images of ``folder``; a CelebAMask-HQ download is recognised by its ``CelebA-HQ-img``.

    Parameters
    ----------
    folder : path
        Its jpg, jpeg, png, webp and bmp files are used; sub-folders are not searched.
    suffix : str, optional
        Take only this suffix (with or without dot), as the vendor's ``sampler.suffix``.

    Raises
    ------
    DataError
        If the folder does not exist or holds no such image.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / CELEBA_FOLDER).is_dir():
        folder = folder / CELEBA_FOLDER
    wanted = SUFFIXES if suffix is None else ("." + suffix.lower().lstrip("."),)
    files = [path for path in folder.iterdir() if path.suffix.lower() in wanted and path.is_file()]
    if not files:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())[:5]
        hint = f"; it has sub-folders: {', '.join(inner)}" if inner else ""
        raise DataError(f"{folder}: no image with suffix {', '.join(wanted)}{hint}")
    return FolderSource(tuple(sorted(files, key=lambda path: natural_key(path.name))))


def check_index(index: int, count: int, what: str) -> None:
    """Raise IndexError unless ``index`` is in 0 .. count - 1; ``what`` names the images."""
    if not 0 <= index < count:
        raise IndexError(f"{what} {index}: there are {count}, counted from 0")


def combined_digest(source: ImageSource, indices: Sequence[int]) -> str:
    """Return one hash over the chosen images, in order."""
    digest = hashlib.sha256()
    for index in indices:
        digest.update(source.digest(index).encode())
    return digest.hexdigest()
