"""What passes between daemon, judge and runner: length-prefixed JSON headers over Unix sockets, and file descriptors.

Tensor bytes never travel here: they lie in memory files that the judge created (see memory.py). Nothing is ever
unpickled. A peer that is gone, late, or talks nonsense raises one of the three errors below, so that whoever asked
can turn it into a verdict. Standard library only.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = struct.Struct("!I")
MAX_HEADER_BYTES = 16 << 20  # sources and briefs; a peer that announces more is talking nonsense
UNTRUSTED_HEADER_BYTES = 1 << 20  # of what a runner answers
MAX_FDS = 64


class PeerGone(Exception):
    """The other side closed the channel, or its process ended."""


class PeerLate(Exception):
    """The other side did not answer before the deadline."""


class PeerNonsense(Exception):
    """The other side sent something that is not a message."""


class Channel:
    """One end of a message channel. Not thread-safe: one conversation at a time.

    ``trusted`` False is for a peer that may be hostile: its descriptors are closed unseen, and its messages are short.
    """

    def __init__(self, sock: socket.socket, *, trusted: bool = True) -> None:
        self._sock = sock
        self._trusted = trusted
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = (), timeout_s: float | None = 30.0) -> None:
        """Send one message, and with it open file descriptors. Raises PeerGone or PeerLate."""
        body = json.dumps(message).encode()
        data = HEADER.pack(len(body)) + body
        self._sock.settimeout(timeout_s)
        try:
            sent = socket.send_fds(self._sock, [data], list(fds)) if fds else self._sock.send(data)
            if sent < len(data):
                self._sock.sendall(memoryview(data)[sent:])
        except TimeoutError as error:
            raise PeerLate("the peer does not read its messages") from error
        except OSError as error:
            raise PeerGone(str(error)) from error

    def receive(self, timeout_s: float | None = None, spin_s: float = 0.0) -> tuple[dict[str, Any], list[int]]:
        """The next message and the descriptors that came with it. ``timeout_s`` None waits without limit; for the first
        ``spin_s`` it stays awake while it waits, since to wake a sleeper takes some 100 us, now more, now less.

        Raises PeerGone, PeerLate or PeerNonsense.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._fds = []
        if spin_s:
            self._spin(time.monotonic() + spin_s)
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        most = MAX_HEADER_BYTES if self._trusted else UNTRUSTED_HEADER_BYTES
        if length > most:
            raise PeerNonsense(f"a message of {length} bytes was announced; at most {most} are accepted")
        body = self._read(length, deadline)
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:  # brackets nested 10,000 deep are no message either
            raise PeerNonsense("a message is not JSON") from error
        if not isinstance(message, dict):
            raise PeerNonsense("a message is not a JSON object")
        return message, self._fds

    def _spin(self, until: float) -> None:
        """Return when there is something to read, or at that time."""
        self._sock.setblocking(False)
        while time.monotonic() < until:
            try:
                self._sock.recv(1, socket.MSG_PEEK)
                return
            except BlockingIOError:
                continue
            except OSError:
                return  # what it is, the reader will be told

    def _read(self, count: int, deadline: float | None) -> bytes:
        parts: list[bytes] = []
        while count:
            if deadline is None:
                self._sock.settimeout(None)
            else:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerLate("no answer before the deadline")
                self._sock.settimeout(left)
            try:
                data, ancillary, _, _ = self._sock.recvmsg(min(count, 1 << 20), socket.CMSG_SPACE(MAX_FDS * 4))
            except TimeoutError as error:
                raise PeerLate("no answer before the deadline") from error
            except OSError as error:
                raise PeerGone(str(error)) from error
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    if self._trusted:
                        self._fds.extend(received)
                    else:
                        for fd in received:
                            os.close(fd)
            if not data:
                raise PeerGone("the channel was closed")
            parts.append(data)
            count -= len(data)
        return b"".join(parts)


def pair(*, trusted: bool = True) -> tuple[Channel, socket.socket]:
    """A connected pair: our end as a Channel, the other as a socket to hand to a child process (see Channel)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours, trusted=trusted), theirs
