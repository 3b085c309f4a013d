"""Progress bars that fit the place where they are shown."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

HEADLESS_INTERVAL = 10.0  # seconds between lines in a notebook that nobody watches


def front_end_is_live() -> bool:
    """Return whether a person's front end (JupyterLab, Notebook 7, VS Code) asked for the running cell.

    Those send the cell's id with every execution request. papermill and nbclient do not, and neither does
    plain Python, so nothing interactive is ever made there.
    """
    shell = _kernel_shell()
    request = shell.get_parent() or {} if shell is not None else {}
    return bool(request.get("metadata", {}).get("cellId"))


def progress(iterable: Any = None, **options: Any) -> Any:
    """Return a tqdm bar: a widget in a live notebook, sparse lines in a headless one, text in a terminal.

    Parameters
    ----------
    iterable : iterable, optional
    **options
        As tqdm's. In a headless notebook bars with ``leave=False`` are not shown at all, because there
        every update is stored as an output.
    """
    if front_end_is_live():
        from tqdm.auto import tqdm as widget_bar

        return widget_bar(iterable, **options)
    if _kernel_shell() is not None:
        headless: dict[str, Any] = {
            "mininterval": HEADLESS_INTERVAL,
            "disable": not options.get("leave", True),
        }
        return tqdm(iterable, **headless, **options)
    return tqdm(iterable, **options)


def _kernel_shell() -> Any:
    """Return the shell of the Jupyter kernel that runs this code, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None
