"""Serve a compiled network over HTTP: the picture of a face is posted, the answer is a PNG."""

import argparse
import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import gpenlib
from gpenlib.cluster.engine import connect
from gpenlib.data.faces import read_face
from gpenlib.images import Image, centre_square, from_tensor, in_short, to_grey, to_tensor
from gpenlib.jobs import processors

REPLICAS, BATCH = 2, 4  # processes with a runtime each; faces that a call takes at most
WAITING = 64  # requests that may wait; further ones are answered with 503
MOST_BYTES, MOST_MEGAPIXELS = 20_000_000, 25.0  # of a request, and of its picture
THREADS = max(1, processors() // REPLICAS)


@serve.deployment(
    num_replicas=REPLICAS,
    ray_actor_options={"num_cpus": THREADS},
    max_ongoing_requests=2 * BATCH,  # the next batch is decoded while one runs
    max_queued_requests=WAITING,
)
class Faces:
    """Answers pictures of aligned faces; those that come together are one batch."""

    def __init__(self, artefact: str) -> None:
        cv2.setNumThreads(1)
        self.runtime = gpenlib.open_runtime(artefact, threads=THREADS)
        self.side = self.runtime.in_size
        for size in range(1, BATCH + 1):  # the first call of each size compiles
            self.runtime(np.zeros((size, 3, self.side, self.side), np.float32))

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return Response(f"the request is longer than {MOST_BYTES:,} bytes", 413)
        try:
            face = await asyncio.to_thread(self.read, body)
        except ValueError as error:  # damaged, too large, or no picture of a face
            return Response(str(error), 400)
        png, batch = await self.answer(face)
        return Response(png, media_type="image/png", headers={"X-Batch-Size": str(batch)})

    def read(self, body: bytearray) -> Image:
        """Return a picture as the network takes it."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            try:
                face = centre_square(read_face(Path(file.name), MOST_MEGAPIXELS))
            except ValueError as error:
                raise ValueError(in_short(error).replace(file.name, "picture")) from error
        face = cv2.resize(face, (self.side, self.side), interpolation=cv2.INTER_AREA)
        return to_grey(face) if self.runtime.task == "color" else face

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
    async def answer(self, faces: list[Image]) -> list[tuple[bytes, int]]:
        """Return the answer to every face of a batch as PNG, and how many they were."""
        return await asyncio.to_thread(self.run, faces)

    def run(self, faces: list[Image]) -> list[tuple[bytes, int]]:
        """Run a batch; outside the event loop, so that requests are taken and decoded meanwhile."""
        answers = from_tensor(self.runtime(to_tensor(faces)))
        return [(cv2.imencode(".png", face[..., ::-1])[1].tobytes(), len(faces)) for face in answers]


def main() -> None:
    """Serve an artefact until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path, help="folder of a compiled network")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    connect()  # to the cluster of RAY_ADDRESS, or one on this machine: no dashboard, no usage statistics
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    with suppress(KeyboardInterrupt):
        serve.run(Faces.bind(str(options.artefact.resolve())), blocking=True)


if __name__ == "__main__":
    main()
