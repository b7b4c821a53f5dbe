"""Servers of files on this machine, which have every fault that servers of files have."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FileServer:
    """The files of a folder by HTTP, with ranges. Each fault is asked (method, path, number of the request) each time."""

    folder: Path
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range) of each request."""
    faults: dict[str, Any] = field(default_factory=dict)
    """Fault to what says whether this request has it: error503, forbidden, short, stalled, no_ranges, other_range, no_length,
    other_total, no_head, slow (seconds)."""

    def gets(self) -> list[tuple[str, str]]:
        """(path, range) of each request for bytes."""
        return [(path, wanted) for method, path, wanted in self.requests if method == "GET"]

    def bytes_sent(self) -> int:
        """Bytes of the ranges that were asked for."""
        ends = [re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) for _, wanted in self.gets()]
        return sum(int(match[2]) - int(match[1]) + 1 for match in ends if match)


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    """A server of a folder, for as long as the context lasts."""
    server = FileServer(folder)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def has(self, fault: str) -> Any:
            says = server.faults.get(fault)
            return says(self.command, self.name, self.number) if says else False

        def answer(self) -> None:
            self.name = unquote(urlsplit(self.path).path).lstrip("/")
            wanted = self.headers.get("Range", "")
            with lock:
                self.number = len(server.requests)
                server.requests.append((self.command, self.name, wanted))
            time.sleep(self.has("slow") or 0)
            if self.has("error503"):
                return self.refuse(503)
            if self.has("forbidden") or (self.command == "HEAD" and self.has("no_head")):
                return self.refuse(403)
            place = server.folder / self.name
            if not place.is_file():
                return self.refuse(404)
            self.send(place.read_bytes(), wanted)

        def refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, data: bytes, wanted: str) -> None:
            total, tag = len(data), hashlib.md5(data).hexdigest()
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if match and not self.has("no_ranges"):
                start, end = int(match[1]), min(int(match[2]) + 1, total)
                if start >= total:
                    return self.refuse(416)
                self.send_response(206)
                moved = 1 if self.has("other_range") else 0
                claimed = total + 1 if self.has("other_total") else total
                self.send_header("Content-Range", f"bytes {start + moved}-{end - 1 + moved}/{claimed}")
                data = data[start:end]
            else:
                self.send_response(200)
            if not self.has("no_length"):
                self.send_header("Content-Length", str(len(data)))
            else:
                self.send_header("Connection", "close")
            self.send_header("ETag", f'"{tag}"')
            self.end_headers()
            if self.command == "GET":
                cut = bool(self.has("short") or self.has("stalled"))
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if self.has("stalled"):
                    self.wfile.flush()
                    time.sleep(3)
                self.close_connection = cut or bool(self.has("no_length"))

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None:
            pass  # clients hang up on what they refuse

    http = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
