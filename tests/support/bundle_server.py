"""A plain web server of bundles, which counts downloads and can hold one up."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class BundleServer(ThreadingHTTPServer):
    """The files of a folder.

    Attributes:
        url: the folder's address.
        downloads: how often each path was downloaded.
        status: what to answer instead of files; 200 for files.
        gate: what each request of a path that ends in weights.bin waits for, if it is not None.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.downloads: Counter[str] = Counter()
        self.status = 200
        self.gate: Any = None


class _Handler(SimpleHTTPRequestHandler):
    server: BundleServer

    def do_GET(self) -> None:
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        self.server.downloads[self.path] += 1
        if self.server.gate is not None and self.path.endswith("weights.bin"):
            self.server.gate.wait(60)
        super().do_GET()

    def log_message(self, *ignored: Any) -> None:
        pass


@contextmanager
def bundle_server(folder: Path) -> Iterator[BundleServer]:
    with BundleServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
