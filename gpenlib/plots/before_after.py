"""Pictures of a face under a divider that wipes from one to the other: HTML that needs nothing else.

Without scripts (untrusted notebooks, mail) the same HTML is a table of all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from gpenlib.files import choice_error
from gpenlib.images import Image, check_image, data_uri, resize

TEMPLATE = "before_after.html.j2"


@dataclass(frozen=True)
class BeforeAfter:
    """The element as a notebook shows it; ``html`` is a fragment that may stand in a page several times."""

    faces: tuple[str, ...]
    labels: tuple[str, ...]
    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def before_after(
    faces: Mapping[str, Mapping[str, Image]],
    left: str | None = None,
    right: str | None = None,
    width: int = 512,
) -> BeforeAfter:
    """Return faces under a divider; which face, and what lies left and right of it, is chosen in the page.

    Parameters
    ----------
    faces : mapping of str to mapping of str to array
        By name and label, such as ``{"ada": {"input": ..., "int8": ...}}``: uint8 RGB [H, W, 3], of any
        size. All faces hold the same labels in the same order, at least two.
    left, right : str, optional
        Labels at the start; by default the first and the second.
    width : int
        Of the element in CSS pixels, less where the page is narrower. Larger pictures are shrunk to it; all
        are stored as JPEG, to be looked at, not measured.

    Raises
    ------
    ValueError
        No face, too few or different labels, or an unknown one.
    ImageError
        A picture of another form, named by face and label.
    """
    if not faces:
        raise ValueError("faces is empty: give at least one, as {name: {label: picture}}")
    labels = list(next(iter(faces.values())))
    for name, pictures in faces.items():
        if list(pictures) != labels or len(labels) < 2:
            held, needed = ", ".join(pictures) or "nothing", ", ".join(labels)
            raise ValueError(
                f"face {name!r} holds {held}: needed are two or more labels, the same for every face "
                f"(the first has {needed or 'none'})"
            )
    sides = {"left": labels[0] if left is None else left, "right": labels[1] if right is None else right}
    for side, label in sides.items():
        if label not in labels:
            raise ValueError(choice_error(side, label, labels))
    rows = {
        name: {label: _source(picture, width, f"{name}, {label}") for label, picture in pictures.items()}
        for name, pictures in faces.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template(TEMPLATE).render(faces=rows, labels=labels, width=width, **sides)
    return BeforeAfter(tuple(faces), tuple(labels), html)


def _source(picture: Image, width: int, name: str) -> str:
    """Return a picture, no wider than ``width``, as the source of an HTML image."""
    check_image(picture, name)
    height, wide = picture.shape[:2]
    return data_uri(resize(picture, (width, round(height * width / wide))) if wide > width else picture)
