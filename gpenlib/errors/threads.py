"""Run PyTorch on as many threads as pay.

Threads that wait for each other spin. Where another process has one of the cores, two threads can take twenty
times as long as one on a small network, and hundreds of runs of it are what the analysis of layers is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TRIALS = 3


@contextmanager
def measured_threads(call: Callable[[], Any], trials: int = TRIALS) -> Iterator[int]:
    """Use one thread or all of them, whichever runs ``call`` faster here and now, while the context lasts.

    Parameters
    ----------
    call : callable
        What is going to be repeated, such as the network on one image. It is run ``2 (trials + 1)`` times.
    trials : int

    Yields
    ------
    int
        The number of threads; the one before is restored behind the context.
    """
    before = torch.get_num_threads()
    seconds = dict.fromkeys((before, 1), 0.0)
    try:
        for trial in range(trials + 1):
            for threads in seconds:
                torch.set_num_threads(threads)
                start = time.perf_counter()
                call()
                if trial:  # the first is for warming up
                    seconds[threads] += time.perf_counter() - start
        chosen = min(seconds, key=lambda threads: seconds[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)
