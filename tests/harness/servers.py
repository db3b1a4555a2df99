"""S3 servers as processes of their own, and a proxy that records what reaches them."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import aiohttp
from aiohttp import web
from filelock import FileLock
from yarl import URL

from . import ROOT

MINISTACK = "ministack==1.5.33"
"""This server pins a version of botocore, and so needs an environment of its own."""

KEPT = ROOT / ".pytest_cache/d/ministack"
"""The folder in which pytest keeps that environment."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


@contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, {}, port, folder) as endpoint:
        yield endpoint


@contextmanager
def ministack_server(folder: Path) -> Iterator[str]:
    """Runs ministack, which is installed in an environment in `folder` if it is not yet there."""
    port = free_port()
    environment = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3"}
    with _running([str(_ministack(folder))], environment, port, folder) as endpoint:
        yield endpoint


_SFTP_SERVER = """
import asyncio, asyncssh
class Server(asyncssh.SSHServer):
    def password_auth_supported(self):
        return True
    def validate_password(self, username, password):
        return (username, password) == ("contract", "contract-secret")
async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, server_host_keys=[key], sftp_factory=True
    )
    print(server.get_port(), flush=True)
    await server.wait_closed()
asyncio.run(main())
"""


@contextmanager
def sftp_server() -> Iterator[int]:
    """Runs an SFTP server and gives its port. Its user `contract` may change what this user may."""
    command = [sys.executable, "-c", _SFTP_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.terminate()


@contextmanager
def azure_server(command: str) -> Iterator[str]:
    port = free_port()
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
    with _emulator(command, "--blobPort", str(port), *options, port=port) as endpoint:
        yield endpoint


@contextmanager
def google_server(command: str) -> Iterator[str]:
    port = free_port()
    address = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port))
    with _emulator(command, *address, "-backend", "memory", port=port) as endpoint:
        yield endpoint


@contextmanager
def _emulator(*command: str, port: int) -> Iterator[str]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as server:
        try:
            while server.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{command[0]} ended at once")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def _ministack(folder: Path) -> Path:
    home = folder / MINISTACK.replace("==", "-")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    complete = home / "complete"
    with FileLock(folder / "install.lock", timeout=600):
        if not complete.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", MINISTACK]
            subprocess.run([scripts / "python", *install], check=True)
            complete.touch()
    return scripts / "ministack"


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str], port: int, folder: Path
) -> Iterator[str]:
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(process, endpoint, Path(log.name))
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        Path(log.name).unlink()


def _wait_for(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    opener = build_opener(ProxyHandler({}))
    for _ in range(3000):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended at once: {log.read_text()[-2000:]}")
        try:
            with opener.open(endpoint, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} does not answer: {log.read_text()[-2000:]}")


def free_port() -> int:
    """A port that the system gives to nobody else within the next minute.

    A connection that its server has closed keeps the port busy for that long. Only a program that
    asks for the port by its number gets it.
    """
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()
        return int(server.getsockname()[1])


@dataclass
class Request:
    """A request as it arrived, with `path` and `query` still encoded. A hook may change it."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass
class Response:
    """A reply. The connection breaks after `cut` bytes of the body, or before the head if 0."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


def error(status: int, code: str) -> Response:
    """The reply of S3 to a request that failed with this code."""
    body = f"<Error><Code>{code}</Code><Message>The message of {code}</Message></Error>"
    return Response(status, {"Content-Type": "application/xml"}, body.encode())


def end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


Hook = Callable[[Request], Awaitable[Response | None]]


@dataclass
class Recorded:
    method: str
    path: str
    query: str
    status: int
    """The status of the reply, or 0 if it was withheld."""


class Proxy:
    """Forwards every request to a server, records it, and lets a hook answer instead.

    The hook may call `forward` itself, to change or withhold the reply to a request that the server
    has carried out.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.requests: list[Recorded] = []
        self.on_request: Hook | None = None
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()

    @property
    def connections(self) -> int:
        return len(self._runner.server.connections) if self._runner.server else 0

    def take(self) -> list[Recorded]:
        """The requests that were recorded since the last call."""
        requests, self.requests = self.requests, []
        return requests

    async def forward(self, request: Request) -> Response:
        url = URL(self.target + request.target, encoded=True)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        data = io.BytesIO(request.body)  # aiohttp warns of plain bytes of more than 1 MiB.
        async with self._session.request(
            request.method, url, headers=headers, data=data, allow_redirects=False
        ) as reply:
            return Response(reply.status, dict(reply.headers), await reply.read())

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        path, _, query = incoming.raw_path.partition("?")
        body = await incoming.read()
        request = Request(incoming.method, path, query, dict(incoming.headers), body)
        response = await self.on_request(request) if self.on_request else None
        if response is None:
            response = await self.forward(request)
        status = response.status if response.cut != 0 else 0
        self.requests.append(Recorded(request.method, request.path, request.query, status))
        return await self._reply(incoming, response)

    async def _reply(self, incoming: web.Request, response: Response) -> web.StreamResponse:
        headers = {
            name: value
            for name, value in response.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        reply = web.StreamResponse(status=response.status, headers=headers)
        if response.status not in (204, 304):
            reply.content_length = len(response.body)
        if incoming.method == "HEAD" and "Content-Length" in response.headers:
            reply.content_length = int(response.headers["Content-Length"])
        if response.cut != 0:
            await reply.prepare(incoming)
            await reply.write(response.body[: response.cut])
        if response.cut is None:
            await reply.write_eof()
        elif incoming.transport is not None:
            incoming.transport.close()
        return reply

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._stop = asyncio.Event()
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            skip_auto_headers=["Content-Type", "User-Agent", "Accept-Encoding"],
        ) as self._session:
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
                ready()
                await self._stop.wait()
            finally:
                await runner.cleanup()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        ready = threading.Event()
        thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(ready.set)), daemon=True
        )
        thread.start()
        if not ready.wait(60):
            raise RuntimeError("the proxy does not start")
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            self._loop.close()
