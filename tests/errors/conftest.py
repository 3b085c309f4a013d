"""A pack of a few faces."""

import pytest

from gpenlib.data.faces import embedded_faces
from gpenlib.data.pairs import Pairs, read_pack, write_pack


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """Four pairs of 64 px."""
    folder = tmp_path_factory.mktemp("pack") / "evaluation"
    write_pack(folder, Pairs(embedded_faces(4, 64), "color", 64))
    return read_pack(folder)
