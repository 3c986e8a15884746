"""What one worker of the demo does: load the model, answer, and share it with the other workers.

For a fleet of one's own the lines of `Worker.share` are all there is to copy.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ksmpy.demo.encoder import Encoder
from ksmpy.demo.proof import OwnPages, last_layer, wrong_bytes
from ksmpy.demo.weights import load, read_layout
from ksmpy.engine.engine import Engine
from ksmpy.errors import KsmpyError, Unsupported

if TYPE_CHECKING:
    from ksmpy.engine.region import Region
    from ksmpy.store.store import Store

__all__ = ["Worker", "serve"]


class Worker:
    """One worker. Each method is something the group may ask for by its name."""

    engine: Engine
    region: Region
    before: OwnPages

    def __init__(self, model: Path, store: Store, options: dict[str, Any]) -> None:
        import numpy.random  # noqa: F401  (before anything is measured)

        self.store = store
        self.options = options
        self.layout = read_layout(model)
        self.weights = load(self.layout)
        self.encoder = Encoder(self.weights, model.parent)
        self.truth: BinaryIO = model.open("rb", buffering=0)
        """What the weights must be. A file, so that the check itself takes no memory."""
        self.tuned: list[str] = []

    def share(self) -> tuple[str, str, int]:
        """Join the store. From here on the pages that others have too are kept once, while the
        worker goes on answering.

        Returns how pages are frozen, how writes are noticed, and how many pages there are.
        """
        self.engine = Engine(store=self.store, **self.options)
        self.region = self.engine.register(self.weights.data, name="model")
        self.engine.knobs.run = 1
        return self.engine.freeze, self.engine.tracking, self.region.pages

    def encode(self, text: str) -> bytes:
        """A request: the vector of a sentence."""
        return self.encoder(text).tobytes()

    def merged(self) -> int:
        """How many of its pages lie on frames, as the engine counts them."""
        return self.region.stats().merging_pages

    def metadata(self) -> int:
        """Bytes of the engine's own tables, those in the store not counted."""
        return self.engine.stats().metadata_bytes - self.store.stats().metadata_bytes

    def compare(self) -> tuple[int, int]:
        """How many bytes were compared with what they must be, and how many are wrong."""
        return self.layout.nbytes, wrong_bytes(self.weights.data, self.truth)

    def trim(self) -> None:
        """Give free memory back, so that what is measured is what is in use."""
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc
            libc.malloc_trim(0)

    def mark(self) -> None:
        """Remember which pages are the worker's own now."""
        self.before = OwnPages(self.weights.data)

    def tune(self) -> None:
        """One step of gradient descent on the last layer, in place, as an optimizer does it."""
        import numpy as np

        generator = np.random.default_rng(0)
        truth = tempfile.TemporaryFile(buffering=0)
        self.truth.seek(0)
        shutil.copyfileobj(self.truth, truth)
        for name in last_layer(self.layout):
            weights = self.weights.tensors[name]
            change = generator.normal(0.0, 0.01, weights.shape).astype(weights.dtype)
            truth.seek(self.layout.tensors[name][2])
            truth.write((weights + change).tobytes())
            weights += change
            self.tuned.append(name)
        self.truth.close()
        self.truth = truth
        self.engine.scan(eager=True)

    def came_apart(self) -> tuple[int, int]:
        """Since mark(): how many pages came apart that were written, and how many pages are not
        as they should be: apart without a write, or written and still on a frame.
        """
        own = OwnPages(self.weights.data).pages
        written = self.before.touched([self.layout.tensors[name][2:] for name in self.tuned])
        apart = written & ~self.before.pages
        wrong = (own & ~self.before.pages & ~written) | (written & ~own)
        return int(apart.sum()), int(wrong.sum())

    def release(self) -> int:
        """Leave the store, with all pages in memory of the worker's own again. Returns how many
        are not.
        """
        self.engine.close()
        own = OwnPages(self.weights.data).pages
        return int(own.size - own.sum())


def serve(
    pipe: Connection, model: Path, store: Store, options: dict[str, Any], threads: int
) -> None:
    """A worker's whole life: do what comes out of the pipe until its other end is closed.

    What was asked for comes back as ("done", result). After ("failed", reason), or "unsupported"
    where the machine lacks something, there is no more.
    """
    # All workers together should have as many threads as there are processors, or they wait for
    # each other. OpenBLAS reads this when numpy loads it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    try:
        worker = Worker(model, store, options)
        pipe.send(("done", None))
        while True:
            name, *arguments = pipe.recv()
            pipe.send(("done", getattr(worker, name)(*arguments)))
    except (EOFError, ConnectionError):
        pass
    except Unsupported as error:
        pipe.send(("unsupported", str(error)))
    except (KsmpyError, OSError) as error:
        pipe.send(("failed", str(error)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
