# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Other ends of a link for tests: a process, a bare socket with frames by hand, a relay that alters bytes."""

import datetime
import json
import multiprocessing
import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hf_securerouter.mpc.net.frame import Kind
from hf_securerouter.mpc.net.link import Link, LinkError
from tests.support import link_worker


LIMIT = 10.0
TOKEN = bytes(range(32))
SECRET = b"a patient's own words"


class Party1:
    """The other process."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=link_worker.serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        assert self._pipe.poll(60), "the other process did not start"
        self._pipe.recv()

    def start(self, task, *args, **options):
        self._pipe.send((task, args, options))

    def outcome(self):
        """How the task ended: "returned" or the name of an error, the value or the error text, and the seconds."""
        assert self._pipe.poll(30), "the other process hangs"
        return self._pipe.recv()

    def returned(self):
        kind, value, _ = self.outcome()
        assert kind == "returned", value
        return value

    def failed(self):
        kind, text, seconds = self.outcome()
        assert kind == "LinkError", (kind, text)
        assert seconds < LIMIT
        return text

    def stop(self):
        self._pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def fails(match):
    """Expect a `LinkError` in time, whose text shows nothing of a payload."""
    start = time.monotonic()
    with pytest.raises(LinkError, match=match) as raised:
        yield
    assert time.monotonic() - start < LIMIT
    error = raised.value
    while error is not None:
        assert "patient" not in str(error)
        error = error.__cause__


@contextmanager
def listening(party1, task, *args, **options):
    """A listener that the other process connects to for its task."""
    with Link.listen() as listener:
        party1.start(task, listener.address, *args, **options)
        yield listener


def make_keys(folder):
    folder.mkdir(exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)

    def certify(name, key, *extensions):
        builder = x509.CertificateBuilder(
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(authority, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(certify("authority", authority, x509.BasicConstraints(ca=True, path_length=None)))
    for role in ("party0", "party1", "dealer"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{role}.pem").write_bytes(certify(role, key, x509.SubjectAlternativeName([x509.DNSName(role)])))
        (folder / f"{role}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        return a, server.accept()[0]


@contextmanager
def pair(**options):
    """A link of rank 0 and the bare socket at its other end, past the handshake."""
    a, b = tcp_pair()
    fake = Fake(b)
    fake.greet()
    with b, Link(a, 0, **options) as link:
        fake.receive_frame()
        fake.receive_frame()
        yield link, fake


class Fake:
    """Frames by hand."""

    def __init__(self, sock):
        sock.settimeout(LIMIT)
        self.sock = sock
        self.round = 0
        self.seen = b""

    def frame(self, kind, payload, length=None, round=None):
        here = self.round if round is None else round
        self.round += 1
        return struct.pack("<3sBIQ", b"SRL", kind, here, len(payload) if length is None else length) + payload

    def hello(self, **fields):
        return self.frame(Kind.HELLO, json.dumps(fields).encode())

    def greet(self):
        self.send(self.hello(version=1, rank=1, challenge="") + self.hello())

    def send(self, data):
        self.sock.sendall(data)

    def receive(self, length):
        data = b""
        while len(data) < length:
            chunk = self.sock.recv(min(length - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        self.seen += data
        return data

    def receive_frame(self):
        header = struct.unpack("<3sBIQ", self.receive(16))
        return header, self.receive(header[3])

    def reflect_proof(self):
        self.receive_frame()
        _, proof = self.receive_frame()
        self.send(self.frame(Kind.PROOF, proof))

    def abort_code(self):
        """The code of the abort frame that comes next, after which the stream ends; None if it ends at once."""
        try:
            (magic, kind, _, code), _ = struct.unpack("<3sBIQ", self.receive(16)), None
        except (ConnectionError, EOFError):
            return None
        assert magic == b"SRL" and kind == Kind.ABORT
        with pytest.raises((ConnectionError, EOFError)):
            self.receive(1)
        return code


class Relay:
    """Relays one connection to an address, and keeps the bytes."""

    def __init__(self, address):
        self._target = address
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = self._server.getsockname()
        self.seen = b""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        near, _ = self._server.accept()
        far = socket.create_connection(self._target)
        back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
        back.start()
        self._pass(near, far)
        back.join()

    def _pass(self, source, target):
        try:
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(LIMIT)
        self._server.close()
