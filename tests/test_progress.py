"""Progress bars by place; the live and headless kernels are stand-ins with the real interface."""

from types import SimpleNamespace

import pytest

from gpenlib import files as progress


def shell(metadata):
    return SimpleNamespace(get_parent=lambda: {"metadata": metadata})


def test_a_terminal_gets_a_bar_that_counts(capsys):
    assert list(progress.progress(range(3), desc="counting")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert not progress.front_end_is_live()


@pytest.mark.parametrize(("leave", "shown"), [(True, True), (False, False)])
def test_a_headless_notebook_gets_few_lines_or_none(monkeypatch, capsys, leave, shown):
    monkeypatch.setattr(progress, "_kernel_shell", lambda: shell({}))
    assert not progress.front_end_is_live()
    assert len(list(progress.progress(range(500), leave=leave))) == 500
    written = capsys.readouterr().err
    assert written.count("\r") <= 2
    assert bool(written) == shown


def test_a_request_with_a_cell_id_is_live(monkeypatch):
    monkeypatch.setattr(progress, "_kernel_shell", lambda: shell({"cellId": "abc"}))
    assert progress.front_end_is_live()
