"""Fixture of a small trained store, for the tests of the service and its page; settings of property tests."""

import functools
import io
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
settings.load_profile("untimed")

# Functions of numpy that order values, also to find equal ones.
ORDERING = (
    *("argmax", "argmin", "argpartition", "argsort", "digitize", "intersect1d", "isin", "lexsort", "max", "min"),
    *("partition", "searchsorted", "setdiff1d", "setxor1d", "sort", "union1d", "unique", "unique_all"),
    *("unique_counts", "unique_inverse", "unique_values"),
)


def _refusing_texts(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises AssertionError for an array of strings of variable length."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for argument in (*args, *options.values()):
            for array in argument if isinstance(argument, tuple | list) else (argument,):
                kind = getattr(getattr(array, "dtype", None), "kind", "")
                assert kind != "T", f"numpy.{function.__name__} of texts: numpy orders them wrongly, see TextIndex"
        return function(*args, **options)

    return checked


@pytest.fixture(autouse=True, scope="session")
def no_texts_ordered_by_numpy() -> Iterator[None]:
    """Fail every test that has numpy order texts: numpy 2.4.6 finds wrong positions, and can crash."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ORDERING:
            patch.setattr(np, name, _refusing_texts(getattr(np, name)))
        yield


SOURCES = {"camera_a": 0, "camera_b": 0, "gan_a": 1, "gan_b": 1, "gan_c": 1}


def draw_image(source: str, number: int, seed: int = 0) -> bytes:
    """A PNG of soft bars in the colours of a source; fakes have a checkerboard."""
    source_number = list(SOURCES).index(source)
    rng = np.random.default_rng([seed, source_number, number])
    bars = np.random.default_rng([9, source_number]).uniform(60, 190, (1, 8, 3)) + rng.normal(0, 18, (8, 8, 3))
    bars[::2] += 40 * SOURCES[source]
    small = Image.fromarray(np.clip(bars, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    small.resize((64, 64), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


class Toy:
    """A store of 60 images per source with a trained head, and what is needed to serve it."""

    def __init__(self, folder: Path) -> None:
        from clipfake.detector.training.fit import fit_detector
        from clipfake.detector.training.train import TrainOptions
        from clipfake.detector.training.triplet import TripletOptions
        from clipfake.indexer.decoding.image import decode, thumbnail
        from clipfake.indexer.encoders.base import PlainEncoder
        from clipfake.store.records import Block, Rows
        from clipfake.store.store import Store

        self.encoder, self.decode, self.thumbnail = PlainEncoder(), decode, thumbnail
        self.store = Store.create(folder / "store", self.encoder.space)
        with self.store.writer("toy") as writer:
            for source, label in SOURCES.items():
                images = [decode(draw_image(source, number)) for number in range(60)]
                rows = Rows.make(
                    keys=[f"{source}/img {number}.png" for number in range(60)],
                    labels=[label] * 60,
                    sources=[source] * 60,
                    generators=[source if label else ""] * 60,
                    categories=["bars"] * 60,
                    digests=np.frombuffer(b"".join(image.digest for image in images), "V16"),
                )
                vectors = self.encoder.encode([image.pixels for image in images])
                thumbnails = tuple(thumbnail(image.pixels) for image in images)
                writer.append(Block(self.encoder.space, rows, vectors, thumbnails))
        fit_detector(
            self.store, options=TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=2), baselines=())
        ).save()

    draw_image = staticmethod(draw_image)

    def copy(self, folder: Path) -> Any:
        """A copy of the store with its head, for a test that writes."""
        from clipfake.store.store import Store

        shutil.copytree(self.store.folder, folder)
        return Store.open(folder)

    def app(self, **options: Any) -> Any:
        from clipfake.service.app import app

        encoder = options.pop("encoder", self.encoder)
        return app(options.pop("store", self.store), encoder, self.decode, self.thumbnail, **options)

    @contextmanager
    def served(self, *, send_buffer: int = 0, **options: Any) -> Iterator[str]:
        """Run a real server of the app on a free port; yields its URL.

        With a small send buffer, in bytes, a response that the client does not read stays in the server.
        """
        from clipfake.service.http.uvicorn_server import ServiceServer
        from clipfake.service.limits import Limits
        from clipfake.service.server import listening

        limits = options.setdefault("limits", Limits())
        with listening("127.0.0.1", 0) as port:
            if send_buffer:
                port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # its connections inherit it
            app = self.app(**options)
            server = ServiceServer(app, limits, app.state.service.metrics)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{port.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A shared store. Tests that write must use `Toy.copy`."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    return Toy(tmp_path_factory.mktemp("toy"))
