"""A load test of the server of docs/how-to/serve.md, beside bare runtimes in the same run.

``python benchmarks/serve.py ARTEFACT`` starts ``docs/how-to/serve_artefact.py`` with an artefact folder, such
as ``outputs/demo/03_compile/int8/artefact``, and sends it PNG faces of the network's side from some clients,
each of which waits for its answer before it asks again. Clients, server and runtimes share this machine. Bare
runtimes, as many as the server has replicas, run in processes of their own before and after.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cluster import WORKERS, bare_rate, write_faces

from gpenlib.files import repository_root
from gpenlib.infer.artefact import read_artefact
from gpenlib.jobs import processor

SERVER = repository_root() / "docs/how-to/serve_artefact.py"
STARTED = 180.0  # seconds in which the server is to answer
DISTINCT = 16  # faces


class Answer(NamedTuple):
    """What the server said."""

    status: int
    body: bytes
    batch: int  # faces that its network took together
    seconds: float


def main() -> None:
    """Print throughput and latency by number of clients, and the rate of bare runtimes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--requests", type=int, default=400, help="for each number of clients (default: 400)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=10.0, help="for which bare runtimes run")
    options = parser.parse_args()
    side = read_artefact(options.artefact).in_size
    print(f"{processor()}; {side} px; {options.requests} requests a line")
    before = bare_rate(options.artefact, options.seconds)
    with tempfile.TemporaryDirectory() as name, serving(options.artefact) as port:
        faces = [path.read_bytes() for path in sorted(write_faces(Path(name), side, DISTINCT).iterdir())]
        load(port, faces, 2 * max(options.clients), max(options.clients))  # not measured
        print("clients  faces/s  median ms  p90 ms  p99 ms  faces a batch")
        for clients in options.clients:
            started = time.perf_counter()
            answers = load(port, faces, options.requests, clients)
            rate = len(answers) / (time.perf_counter() - started)
            failed = [answer for answer in answers if answer.status != 200]
            assert not failed, failed[0]
            middle, slow, slowest = np.percentile([1000 * answer.seconds for answer in answers], [50, 90, 99])
            batch = len(answers) / sum(1 / answer.batch for answer in answers)
            print(f"{clients:7}  {rate:7.1f}  {middle:9.1f}  {slow:6.1f}  {slowest:6.1f}  {batch:13.2f}")
    after = bare_rate(options.artefact, options.seconds)
    print(f"{WORKERS} bare runtimes: {before:.1f} faces/s before, {after:.1f} after")


@contextmanager
def serving(artefact: Path) -> Iterator[int]:
    """Run the server in a process of its own; give its port once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(SERVER), str(artefact), "--port", str(port)])
    try:
        for _ in until(time.monotonic() + STARTED):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with status {server.returncode}")
            with suppress(OSError):
                if ask(HTTPConnection("127.0.0.1", port), b"").status == 400:  # what is no picture
                    break
        yield port
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def until(end: float) -> Iterator[None]:
    """Yield some times a second; TimeoutError at the end."""
    for _ in count():
        yield
        if time.monotonic() > end:
            raise TimeoutError("the server does not answer")
        time.sleep(0.2)


def ask(connection: HTTPConnection, body: bytes) -> Answer:
    """Post a picture."""
    started = time.perf_counter()
    connection.request("POST", "/", body)
    response = connection.getresponse()
    answer = response.read()
    batch = int(response.headers.get("X-Batch-Size", 0))
    return Answer(response.status, answer, batch, time.perf_counter() - started)


def load(port: int, bodies: list[bytes], requests: int, clients: int) -> list[Answer]:
    """Ask from some clients at the same time; return all answers, in the order of the requests."""

    def client(first: int) -> list[Answer]:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        return [ask(connection, bodies[n % len(bodies)]) for n in range(first, requests, clients)]

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(client, range(clients)))
    return [answers[number % clients][number // clients] for number in range(requests)]


if __name__ == "__main__":
    main()
