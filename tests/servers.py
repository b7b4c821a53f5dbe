"""Servers of files on this machine, which have every fault that servers of files have."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest


@dataclass
class FileServer:
    """The files of a folder by HTTP, with ranges. Each fault is asked (method, path, number of the request) each time."""

    folder: Path
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range) of each request."""
    most: int = 0
    """Requests that were answered at a time, at most."""
    faults: dict[str, Any] = field(default_factory=dict)
    """Fault to what says if this request has it: error503, forbidden, short, fewer, stalled, no_ranges, other_range, no_length,
    other_total, no_head, missing, no_tag, endless (with no_length), slow (seconds), held (until so many are answered at a time,
    5 seconds at most), throttled (seconds until it is to be asked again)."""

    def gets(self) -> list[tuple[str, str]]:
        """(path, range) of each request for bytes."""
        return [(path, wanted) for method, path, wanted in self.requests if method == "GET"]

    def bytes_sent(self) -> int:
        """Bytes of the ranges that were asked for."""
        ends = [re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) for _, wanted in self.gets()]
        return sum(int(match[2]) - int(match[1]) + 1 for match in ends if match)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: Any) -> None:
        pass  # clients hang up on what they refuse


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The url of a server in a thread."""
    http = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Quiet(BaseHTTPRequestHandler):
    """A handler that writes no log, and sends whole answers."""

    def send(self, data: bytes, status: int, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    """A server of a folder, for as long as the context lasts."""
    server = FileServer(folder)
    lock, busy = threading.Lock(), list[Any]()

    class Handler(_Quiet):
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
                busy.append(self)
                server.most = max(server.most, len(busy))
            time.sleep(self.has("slow") or 0)
            give_up = time.monotonic() + 5
            while server.most < self.has("held") and time.monotonic() < give_up:
                time.sleep(0.002)
            with lock:
                busy.remove(self)
            if self.has("error503"):
                return self.refuse(503)
            if seconds := self.has("throttled"):
                return self.refuse(429, {"Retry-After": str(seconds)})
            if self.has("forbidden") or (self.command == "HEAD" and self.has("no_head")):
                return self.refuse(403)
            place = server.folder / self.name
            if self.has("missing") or not place.is_file():
                return self.refuse(404)
            self.send(place.read_bytes(), wanted)

        def refuse(self, status: int, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
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
                data = data[start : end - 1] if self.has("fewer") else data[start:end]
            else:
                self.send_response(200)
            if not self.has("no_length"):
                self.send_header("Content-Length", str(len(data)))
            else:
                self.send_header("Connection", "close")
            if not self.has("no_tag"):
                self.send_header("ETag", f'"{tag}"')
            self.end_headers()
            if self.command == "GET":
                cut = bool(self.has("short") or self.has("stalled"))
                self.wfile.write(data[: len(data) // 2] if cut else data)
                while self.has("endless"):
                    self.wfile.write(bytes(1 << 16))
                if self.has("stalled"):
                    self.wfile.flush()
                    time.sleep(60)
                self.close_connection = cut or bool(self.has("no_length"))

    with _serving(Handler) as server.url:
        yield server


@contextmanager
def bucket_server(files: Mapping[str, bytes]) -> Iterator[str]:
    """Objects by their names in the way of Google Cloud Storage, each of generation 1 and more; the url of the server.

    A change of `files` is another generation; requests for the one before are answered as if it were gone.
    """
    generations: dict[str, list[bytes]] = {}

    class Handler(_Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query))
            for name, data in files.items():
                if not generations.setdefault(name, []) or generations[name][-1] != data:
                    generations[name].append(data)
            bucket, _, name = url.path.partition("/b/")[2].partition("/o")
            name = unquote(name).lstrip("/")
            if not name:
                prefix = query.get("prefix", "")
                return self.say({"items": [self.facts(bucket, one) for one in sorted(files) if one.startswith(prefix)]})
            if name not in files or query.get("generation", str(len(generations[name]))) != str(len(generations[name])):
                return self.say({"error": {"code": 404, "message": "No such object"}}, 404)
            if query.get("alt") != "media":
                return self.say(self.facts(bucket, name))
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            data = files[name][int(match[1]) : int(match[2]) + 1] if match else files[name]
            self.send(data, 206 if match else 200)

        def facts(self, bucket: str, name: str) -> dict[str, str]:
            size, generation = str(len(files[name])), str(len(generations[name]))
            return {"kind": "storage#object", "bucket": bucket, "name": name, "size": size, "generation": generation}

        def say(self, content: Any, status: int = 200) -> None:
            self.send(json.dumps(content).encode(), status, "application/json")

    with _serving(Handler) as url:
        yield url


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[str]:
    """The data set org/name of files by their paths, in the way of the Hugging Face hub; the url of the server.

    A change of `files` is another commit of its branch main; those before can still be read.
    """
    commits: dict[str, dict[str, bytes]] = {}

    def head() -> str:
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        commits.setdefault(name, dict(files))
        return name

    class Handler(_Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            last = head()
            if known := re.fullmatch("/api/datasets/org/name(?:/revision/([^/]+))?", path):
                named = known[1] if known[1] in commits else last
                return self.say({"id": "org/name", "sha": named, "siblings": []})
            if listed := re.match("/api/datasets/org/name/tree/([^/]+)", path):
                there = commits.get(listed[1], files)
                folders = [{"type": "directory", "path": name, "oid": "b" * 40} for name in {n.partition("/")[0] for n in there}]
                return self.say([*folders, *(self.facts(name, data) for name, data in there.items())])
            wanted = re.fullmatch("/datasets/org/name/resolve/([^/]+)/(.*)", path)
            if wanted and wanted[2] in commits.get(wanted[1], files):
                data = commits.get(wanted[1], files)[wanted[2]]
                match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                return self.send(data[int(match[1]) : int(match[2]) + 1] if match else data, 206 if match else 200)
            return self.say({"error": "Repository not found"}, 404)

        def facts(self, name: str, data: bytes) -> dict[str, Any]:
            return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def say(self, content: Any, status: int = 200) -> None:
            self.send(json.dumps(content).encode(), status)

    with _serving(Handler) as url:
        yield url


@contextmanager
def s3_server() -> Iterator[tuple[dict[str, str], Any]]:
    """A server with S3's interface (moto): the variables that lead there, which are set meanwhile, and its file system.

    A test is skipped where the extra `remote` or moto is missing.
    """
    pytest.importorskip("s3fs", reason="the extra remote is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import fsspec

    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_DEFAULT_REGION": "us-east-1"}
    variables = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield variables, fsspec.filesystem("s3", skip_instance_cache=True)
    finally:
        moto.stop()


@contextmanager
def google_server() -> Iterator[dict[str, str]]:
    """A server with the interface of Google Cloud Storage and an empty bucket "runs": the variables that lead there.

    A test is skipped where the extra `remote` or the emulator is missing.
    """
    pytest.importorskip("gcsfs", reason="the extra remote is not installed")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    server.start()
    variables = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", variables["STORAGE_EMULATOR_HOST"])
            yield variables
    finally:
        server.stop()
