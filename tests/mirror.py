"""A web server on this machine that has the archives of a data set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Mirror:
    """The server.

    Attributes:
        url: its address.
        archives: what it sends, by name; a test may alter it.
        downloads: the names of those that were asked for.
    """

    url: str
    archives: dict[str, bytes]
    downloads: list[str] = field(default_factory=list)


@contextmanager
def serve(archives: dict[str, bytes], silent: bool = False) -> Iterator[Mirror]:
    """Serves the archives; where one is made shorter later, the connection breaks off. A silent one never answers."""
    over = threading.Event()
    lengths = {name: len(content) for name, content in archives.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if silent:
                over.wait()
                return
            name = self.path.lstrip("/")
            content = mirror.archives.get(name)
            if content is None:
                self.send_error(404)
                return
            if self.headers.get("Method") != "HEAD":  # how torchvision asks for redirects
                mirror.downloads.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(lengths[name]))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror = Mirror(f"http://127.0.0.1:{server.server_port}/", dict(archives))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield mirror
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
