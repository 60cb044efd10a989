"""A TCP proxy that hangs up in the middle of an answer, as real networks do."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class CuttingProxy:
    """Passes `limits[0]` bytes of the first connection's answer and hangs up, then `limits[1]` of the second, and so
    on; None, and connections after the last limit, are left alone. `requests` is what was asked on each."""

    def __init__(self, upstream: str, *limits: int | None) -> None:
        self._upstream = (urlsplit(upstream).hostname, urlsplit(upstream).port)
        self._limits = iter(limits)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, next(self._limits, None)), daemon=True).start()

    def _serve(self, client: socket.socket, limit: int | None) -> None:
        number = len(self.requests)
        self.requests.append(b"")
        with client, socket.create_connection(self._upstream) as server, suppress(OSError):
            back = threading.Thread(target=self._answer, args=(server, client, limit), daemon=True)
            back.start()
            while data := client.recv(1 << 16):
                self.requests[number] += data
                server.sendall(data)

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if limit is not None and passed + len(data) >= limit:
                    client.sendall(data[: limit - passed])
                    break
                client.sendall(data)
                passed += len(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
