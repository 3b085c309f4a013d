"""The element that wipes between pictures: complete in itself, harmless, small, and right without scripts."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.images import ImageError
from gpenlib.plots.before_after import before_after

LABELS = ("input", "fp32", "int8", "truth")
HOSTILE = '"><script>alert(1)</script> & {{ 7*7 }} `${1}`'
VOID = {"img", "input", "meta"}


class Page(HTMLParser):
    """Collects tags, attributes and pictures; tags that are not closed in order are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += attributes
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += [text] if self.open[-1:] not in (["script"], ["style"]) else []

    def all(self, name):
        return [value for key, value in self.attributes if key == name]


def faces(names=("ada", "bo"), side=64):
    source = embedded_faces(len(names), side)
    return {
        name: {label: np.roll(source.read(i), k, 1) for k, label in enumerate(LABELS)}
        for i, name in enumerate(names)
    }


def picture(source):
    data = np.frombuffer(base64.b64decode(source.partition("base64,")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_it_holds_every_picture_and_label_and_asks_for_nothing_else():
    given = faces()
    page = Page(before_after(given, right="int8").html)
    assert page.all("alt") == [f"{name}: {label}" for name in given for label in LABELS]
    expected = [image for pictures in given.values() for image in pictures.values()]
    for source, image in zip(page.all("src"), expected, strict=True):
        assert np.abs(picture(source).astype(int) - image).mean() < 3, "RGB, in order"
    assert {*LABELS, *given} <= set(page.text)
    assert (page.all("data-left"), page.all("data-right")) == (["input"], ["int8"])
    rest = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", before_after(given).html)
    assert not re.search(r"//\w|url\(|@import|\bhref|\bfetch|require", rest), "no network"
    assert not re.search(r"\bid=", rest), "the same element may stand in a page twice"


def test_names_are_text_and_never_markup_or_script():
    plain, hostile = (
        Page(before_after({name: {name: pictures["input"], "x": pictures["int8"]}}).html)
        for name, pictures in faces(("plain", HOSTILE)).items()
    )
    assert hostile.tags == plain.tags and len(hostile.attributes) == len(plain.attributes)
    assert hostile.text.count(HOSTILE) == 2 and hostile.all("data-left") == [HOSTILE]


def test_pictures_are_no_wider_than_shown_and_all_fit_in_a_megabyte():
    photograph = embedded_faces(1, 256).read(0)
    grain = np.random.default_rng(0).normal(0, 6, photograph.shape)
    noisy = np.clip(photograph + grain, 0, 255).astype(np.uint8)
    element = before_after({name: dict.fromkeys(LABELS, noisy) for name in "abcd"})
    assert len(element.html) < 1_000_000 and len(repr(element)) < 200
    wide = np.zeros((60, 120, 3), np.uint8)
    shrunk, kept = Page(before_after({"a": {"wide": wide, "small": wide[:9, :9]}}, width=40).html).all("src")
    assert picture(shrunk).shape == (20, 40, 3) and picture(kept).shape == (9, 9, 3)


@pytest.mark.parametrize(
    ("wrong", "options", "error", "said"),
    [
        ({}, {}, ValueError, "empty"),
        ({"ada": {"input": 0}}, {}, ValueError, "ada.*input"),
        (faces() | {"cy": {"input": 0, "fp32": 0}}, {}, ValueError, "cy.*truth"),
        (faces(), {"right": "int4"}, ValueError, "right='int4'.*int8"),
        ({"ada": {"input": np.zeros((4, 4)), "fp32": 0}}, {}, ImageError, "ada, input"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(wrong, options, error, said):
    with pytest.raises(error, match=said):
        before_after(wrong, **options)
