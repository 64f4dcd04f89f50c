"""Messages over real sockets: whole, torn, late, forged."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from autokernel.evaluate.protocol import HEADER, Channel, PeerGone, PeerLate, PeerNonsense, pair


def ends() -> tuple[Channel, Channel, socket.socket]:
    ours, theirs = pair()
    return ours, Channel(theirs), theirs


def test_a_message_and_a_descriptor_arrive() -> None:
    ours, theirs, _ = ends()
    read_end, write_end = os.pipe()
    ours.send({"op": "hello", "text": "ä" * 10_000}, [read_end])
    message, fds = theirs.receive(5)
    os.write(write_end, b"x")
    assert message == {"op": "hello", "text": "ä" * 10_000}
    assert os.read(fds[0], 1) == b"x"
    for fd in (read_end, write_end, *fds):
        os.close(fd)


def test_messages_keep_their_order_and_borders() -> None:
    ours, theirs, _ = ends()
    sender = threading.Thread(target=lambda: [ours.send({"n": n}) for n in range(500)])
    sender.start()
    assert [theirs.receive(5)[0]["n"] for _ in range(500)] == list(range(500))
    sender.join()


def test_a_silent_peer_is_late() -> None:
    ours, _theirs, _ = ends()
    with pytest.raises(PeerLate):
        ours.receive(0.05)


def test_a_dripping_peer_is_late_too() -> None:
    ours, _theirs, raw = ends()
    raw.send(HEADER.pack(1000) + b"{")
    with pytest.raises(PeerLate):
        ours.receive(0.05)


def test_a_closed_peer_is_gone() -> None:
    ours, theirs, _ = ends()
    theirs.close()
    with pytest.raises(PeerGone):
        ours.receive(1)


@pytest.mark.parametrize("forged", [b"\xff\xff\xff\xff", HEADER.pack(3) + b"not", HEADER.pack(2) + b"[]"])
def test_what_is_no_message_is_refused(forged: bytes) -> None:
    ours, _theirs, raw = ends()
    raw.send(forged)
    with pytest.raises(PeerNonsense):
        ours.receive(1)


def test_a_peer_that_reads_nothing_does_not_block_the_sender_for_ever() -> None:
    ours, _theirs, _ = ends()
    with pytest.raises(PeerLate):
        ours.send({"text": "x" * 8_000_000}, timeout_s=0.1)


def test_brackets_without_end_are_no_message() -> None:
    ours, _theirs, raw = ends()
    body = b"[" * 500_000
    threading.Thread(target=raw.sendall, args=(HEADER.pack(len(body)) + body,)).start()
    with pytest.raises(PeerNonsense):
        ours.receive(10)


def test_descriptors_of_an_untrusted_peer_are_closed_and_its_messages_are_short() -> None:
    ours, theirs = pair(trusted=False)
    peer = Channel(theirs)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        peer.send({"ok": True}, [0] * 60)
        assert ours.receive(5) == ({"ok": True}, [])
    assert len(os.listdir("/proc/self/fd")) == before
    theirs.send(HEADER.pack(2 << 20))
    with pytest.raises(PeerNonsense, match="at most 1048576"):
        ours.receive(5)
