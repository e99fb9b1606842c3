# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whose limits a query counts against, and what a client is told when it connects."""

import contextlib
import errno
import json
import os
import queue
import struct
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from hf_securerouter.mpc.deployment import audit as audit_module
from hf_securerouter.mpc.deployment import client_desk
from hf_securerouter.mpc.deployment import limits as limits_module
from hf_securerouter.mpc.deployment.audit import Audit
from hf_securerouter.mpc.deployment.client_desk import ClientDesk
from hf_securerouter.mpc.deployment.limits import Accounts, Limits
from hf_securerouter.mpc.deployment.query_queue import QueryQueue
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.net.channel import MAGIC, Channel, ChannelClosed
from hf_securerouter.mpc.net.socket_stream import SocketStream
from hf_securerouter.mpc.sessions.session import SessionError
from tests.support.transport_ends import tcp_pair


class Desk:
    """Party 1's desk, for shares without tensors; a context manager."""

    def __init__(self, timeout=20.0, audit=None, room=1 << 30, **limits):
        party = SimpleNamespace(rank=1, check=lambda batch, tensors: None)
        manifest, self.queue = SimpleNamespace(largest_batch=4), QueryQueue(0)
        accounts, audit = Accounts(Limits(**{"waiting": 1} | limits), room), audit or Audit(None, "party1")
        self.desk = ClientDesk(party, manifest, self.queue, accounts, timeout, lambda line: None, audit)
        self._threads, self._open = [], contextlib.ExitStack()

    def caller(self, name):
        """The channel of a client of this name, each over a connection of its own."""
        ends = tcp_pair()
        stream = SocketStream(ends[0])
        stream.name, stream.fingerprint = name, lambda: "the key"
        self._threads.append(threading.Thread(target=self.desk.serve, args=(stream,), daemon=True))
        self._threads[-1].start()
        channel = Channel(SocketStream(ends[1]), "the desk")
        self._open.callback(channel.close)
        return channel

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def soon(condition):
    """Whether a condition holds within a while."""
    deadline = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def holds(queue, number):
    """Whether the query of this id is in the queue, within a while."""
    return soon(lambda: f"{number:032x}" in dict(queue.held()))


def test_a_limit_is_that_of_a_name_whatever_keys_its_holder_has():
    with Desk() as desk:
        callers = [desk.caller(name) for name in ("ada", "ada", "bob")]
        for number, channel in enumerate(callers, start=1):
            channel.send({"kind": "query", "id": f"{number:032x}", "batch": 1}, timeout=20)
            if number == 2:
                answer, _ = channel.receive(timeout=20)
                assert answer["busy"] and "`waiting`: 1 queries of a client" in answer["error"]
            else:
                assert holds(desk.queue, number)
        assert [int(identity, 16) for identity, _ in desk.queue.held()] == [1, 3]


def test_a_connection_too_many_is_told_when_to_come_again():
    with Desk(connections=1) as desk:
        first = desk.caller("ada")
        first.send({"kind": "query", "id": f"{1:032x}", "batch": 1}, timeout=20)
        assert holds(desk.queue, 1)  # so that it is not idle
        answer, _ = desk.caller("ada").receive(timeout=20)
        assert answer["busy"] and answer["again"] > 0 and "`connections`: 1" in answer["error"]
        desk.queue.limit(2)
        other = desk.caller("bob")
        other.send({"kind": "hello"}, timeout=20)
        assert other.receive(timeout=20)[0]["kind"] == "hello"


def test_a_client_is_told_the_largest_batch_once_the_roles_have_met():
    with Desk() as desk:
        early = desk.caller("ada")
        early.send({"kind": "hello"}, timeout=20)
        desk.queue.limit(3)
        late = desk.caller("bob")
        late.send({"kind": "hello"}, timeout=20)
        for channel in (early, late):
            assert channel.receive(timeout=20)[0] == {"kind": "hello", "batch": 3}


def test_a_client_that_waits_for_the_roles_in_vain_may_come_again(monkeypatch):
    monkeypatch.setattr(client_desk, "_BEAT", 0.05)
    with Desk(timeout=0.2) as desk:
        channel = desk.caller("ada")
        channel.send({"kind": "hello"}, timeout=20)
        answer, _ = channel.receive(timeout=20)
        assert "did not meet within 0.2 seconds" in answer["error"] and answer["again"] > 0


UNREADABLE = struct.pack("<4sIQ", MAGIC, 1, 0) + b"x"


def lines_of(path):
    """The user and the outcome of each line of an audit log."""
    return [(line["user"], line["outcome"]) for line in map(json.loads, path.read_text().splitlines())]


def test_a_client_whose_messages_are_refused_too_often_is_closed_and_fills_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(client_desk, "REFUSALS", 3)
    invalid = {"kind": "query", "id": "0" * 32, "batch": 1}
    with Desk(audit=Audit(tmp_path / "audit", "party1")) as desk:
        flooding = desk.caller("ada")
        for _ in range(3):
            flooding.send_bytes(UNREADABLE, timeout=20)
            assert "cannot be read" in flooding.receive(timeout=20)[0]["error"]
        for channel in (flooding, desk.caller("ada"), desk.caller("ada")):
            channel.send(invalid, timeout=20)
            answer, _ = channel.receive(timeout=20)
            assert "3 refused messages of a client a minute" in answer["error"]
            assert answer["busy"] and 0 < answer["again"] <= 60
            with pytest.raises(ChannelClosed):
                channel.receive(timeout=20)
        other = desk.caller("bob")
        other.send(invalid, timeout=20)
        assert "A query's id" in other.receive(timeout=20)[0]["error"]
        good = desk.caller("ada")  # what is not refused is still taken
        good.send({"kind": "query", "id": f"{1:032x}", "batch": 1}, timeout=20)
        assert holds(desk.queue, 1)
        monkeypatch.setattr(limits_module, "_MINUTE", 0.0)
        later = desk.caller("ada")
        later.send(invalid, timeout=20)
        assert "A query's id" in later.receive(timeout=20)[0]["error"]
    ada, bob = ([outcome for user, outcome in lines_of(tmp_path / "audit") if user == name] for name in ("ada", "bob"))
    assert sorted(ada) == ["closed", "left", *["refused"] * 4] and bob == ["refused"]


def test_lines_that_are_owed_are_few_however_many_messages_come(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit_module, "os", SimpleNamespace(**{**vars(os), "write": full}))
    audit = Audit(tmp_path / "audit", "party1")
    with Desk(audit=audit) as desk:
        for number in range(5):
            channel = desk.caller("ada")
            channel.send_bytes(UNREADABLE, timeout=20)
            answer, _ = channel.receive(timeout=20)
            assert ("cannot note who asks" if number else "cannot be read") in answer["error"]
            assert soon(lambda: len(audit._owed) == 1)


@pytest.mark.parametrize(
    "begun, match",
    [
        (struct.pack("<4sIQ", MAGIC, 2, 1000) + b"{}" + bytes(10), "did not send a whole message within 0.2 seconds"),
        (struct.pack("<4sIQ", MAGIC, 2, 1 << 40) + bytes(1 << 16), "past the limit"),
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(1 << 16), "where a frame should begin"),
    ],
    ids=["slow", "too long", "no frame"],
)
def test_what_is_no_whole_message_is_answered_noted_and_ends_the_connection(tmp_path, monkeypatch, begun, match):
    monkeypatch.setattr(client_desk, "FRAME", 0.2)
    with Desk(audit=Audit(tmp_path / "audit", "party1")) as desk:
        channel = desk.caller("ada")
        channel.send_bytes(begun, timeout=20)
        answer, _ = channel.receive(timeout=20)
        assert match in answer["error"] and "again" not in answer  # to ask again would help nobody
        with pytest.raises(ChannelClosed):
            channel.receive(timeout=20)
    assert lines_of(tmp_path / "audit") == [("ada", "refused")]


@pytest.mark.parametrize("header", [{"kind": "hello"}, {"kind": "query", "id": f"{1:032x}", "batch": 1}])
def test_a_message_before_the_answer_to_another_one_is_answered_and_ends_both(monkeypatch, header):
    monkeypatch.setattr(client_desk, "_BEAT", 0.05)
    with Desk() as desk:
        channel = desk.caller("ada")
        channel.send(header, timeout=20)
        channel.send_bytes(b"S", timeout=20)  # the beginning is enough
        assert "something before it had its answer" in channel.receive(timeout=20)[0]["error"]
        with pytest.raises(ChannelClosed):
            channel.receive(timeout=20)
        assert soon(lambda: not desk.queue.held())


class SlowLine(Channel):
    """Takes for ever to send a message."""

    def send(self, header, tensors=None, timeout=60.0):
        self.send_bytes(struct.pack("<4sIQ", MAGIC, 2, 60_000) + b"{}")
        while True:
            time.sleep(0.05)
            self.send_bytes(b"x")


def test_a_client_with_a_slow_line_reads_why_and_does_not_ask_again(monkeypatch):
    monkeypatch.setattr(client_desk, "FRAME", 0.3)
    monkeypatch.setattr(client_desk, "HANDSHAKE", 0.5)
    told = []
    session = RemoteSession.__new__(RemoteSession)  # without a folder, nobody to connect to
    session.timeout, session._retries, session._log = 20, 3, told.append
    session._process, session._channels, session._events = None, {}, queue.SimpleQueue()
    with Desk() as desk:
        session._add("party0", SlowLine(desk.caller("ada")._stream, "party0"))
        with pytest.raises(SessionError, match="party0 gave no answer: .* within 0.3 seconds. Ask for fewer texts"):
            session._persist(lambda: session._send("party0", {}), 20)
    assert told == []


def test_no_query_is_taken_up_while_its_line_in_the_audit_log_is_owed(tmp_path, monkeypatch):
    room = [50]

    def full(file, data):
        written = os.write(file, data[: room[0]])
        room[0] -= written
        if not written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    def ask(channel):
        channel.send({"kind": "query", "id": "0" * 32, "batch": 1}, timeout=20)
        return channel.receive(timeout=20)[0]

    monkeypatch.setattr(audit_module, "os", SimpleNamespace(**{**vars(os), "write": full}))  # no other module's
    with Desk(audit=Audit(tmp_path / "audit", "party1")) as desk:
        assert "A query's id" in ask(desk.caller("ada"))["error"]  # the line of this one is cut
        assert soon(lambda: room == [0])  # it is written after the answer
        for _ in range(2):
            answer = ask(desk.caller("ada"))
            assert "cannot note who asks" in answer["error"] and answer["again"] > 0
        assert (tmp_path / "audit").read_bytes() == b""
        room[0] = 10_000
        assert "A query's id" in ask(desk.caller("bob"))["error"]
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["user"] for line in lines] == ["ada", "bob"]


def test_bytes_count_from_the_moment_that_they_are_announced():
    tensors = {"x": torch.zeros(400, dtype=torch.uint8)}

    def ask(channel, number):
        channel.send({"kind": "query", "id": f"{number:032x}", "batch": 1}, tensors, timeout=20)
        return channel.receive(timeout=20)[0]

    with Desk(bytes_in_flight=1000) as desk:
        slow, other, bob = (desk.caller(name) for name in ("ada", "ada", "bob"))
        slow.send_bytes(struct.pack("<4sIQ", MAGIC, 2, 900) + b"{}" + bytes(10))  # and never the rest
        assert soon(lambda: desk.desk._accounts._bytes["ada"])  # the desk has read how many come
        for _ in range(2):  # the refused frame was read to its end: the connection goes on
            answer = ask(other, 1)
            assert answer["busy"] and answer["again"] > 0 and "`bytes_in_flight`: 1000" in answer["error"]
        bob.send({"kind": "query", "id": f"{1:032x}", "batch": 1}, tensors, timeout=20)
        assert holds(desk.queue, 1)
        slow.close()
        assert soon(lambda: "A query's id" in ask(other, 0)["error"])


def test_clients_that_together_ask_for_too_many_bytes_are_told_to_come_again():
    tensors = {"x": torch.zeros(400, dtype=torch.uint8)}
    with Desk(room=1200) as desk:
        first, second = desk.caller("ada"), desk.caller("bob")
        first.send({"kind": "query", "id": f"{1:032x}", "batch": 1}, tensors, timeout=20)
        assert holds(desk.queue, 1)
        second.send({"kind": "query", "id": f"{2:032x}", "batch": 1}, tensors, timeout=20)
        answer, _ = second.receive(timeout=20)
        assert answer["busy"] and answer["again"] > 0 and "1200 bytes of queries of all clients" in answer["error"]
        first.close()
        assert soon(lambda: not desk.desk._accounts._bytes["ada"])
        second.send({"kind": "query", "id": f"{2:032x}", "batch": 1}, tensors, timeout=20)
        assert holds(desk.queue, 2)
