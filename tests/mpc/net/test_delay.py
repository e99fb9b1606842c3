# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The delayed network: it delays everything between the parties, at full bandwidth, and leaves nothing behind."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_securerouter import SecureRouterValueError, cli
from hf_securerouter.mpc import secure_model
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.net import delay
from hf_securerouter.mpc.net.cost import Cost
from hf_securerouter.mpc.net.delay import DelayedNetwork, DelayError
from hf_securerouter.mpc.net.network_model import NetworkModel
from hf_securerouter.mpc.profiler import TRIPS, estimate
from hf_securerouter.mpc.sessions.local import SessionError
from tests.support.children import children
from tests.support.open_files import many_open_files
from tests.tiny import family_config


def possible():
    try:
        DelayedNetwork(0.001).close()
    except DelayError:
        return False
    return True


needs_network = pytest.mark.skipif(not possible(), reason="takes the right to make network namespaces and TUN devices")

# A message there and back by TCP, then many by UDP, each a packet of its own, and one back when all have come.
ANSWER = """
import socket
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 5001))
with socket.create_server(("127.0.0.1", 5000)) as listener:
    print("listening", flush=True)
    peer, host = listener.accept()
    peer.sendall(peer.recv(1))
    for _ in range(50):
        datagrams.recv(1)
    peer.sendall(b"!")
    print(host[0])
"""
ASK = """
import socket, time
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer = socket.create_connection(("127.0.0.1", 5000))
start = time.monotonic()
peer.sendall(b"?")
peer.recv(1)
print(time.monotonic() - start)
start = time.monotonic()
for _ in range(50):
    datagrams.sendto(b".", ("127.0.0.1", 5001))
peer.recv(1)
print(time.monotonic() - start)
"""

# One packet to the other end, where nobody listens, and the refusal that comes back.
PING = """
import socket
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(20)
asking.connect(("127.0.0.2", 5001))
asking.send(b"?")
try:
    asking.recv(1)
except ConnectionRefusedError:
    print("refused")
"""


def classifier():
    return BertForSequenceClassification(family_config("bert", layers=1)).eval()


@needs_network
def test_messages_arrive_late_and_not_one_by_one():
    network = DelayedNetwork(0.1)
    relay = network._process
    try:
        ends = []
        for rank, code in enumerate((ANSWER, ASK)):
            command = [*network.entering(rank), sys.executable, "-c", code]
            ends.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=network.descriptors))
            if rank == 0:
                assert ends[0].stdout.readline() == "listening\n"
        host = ends[0].communicate(timeout=60)[0].strip()
        back_and_forth, in_a_row = map(float, ends[1].communicate(timeout=60)[0].split())
    finally:
        network.close()
    assert host == "127.0.0.2"
    assert back_and_forth >= 0.2
    assert 0.2 <= in_a_row < 50 * 0.1
    assert relay.poll() is not None and network.descriptors == []


@needs_network
@pytest.mark.parametrize("protocol, provider", [("masked", "ttp"), ("crypten", "tfp")])
def test_the_parties_meet_on_it_and_leave_nothing(protocol, provider):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        secure = to_mpc(classifier(), protocol=protocol, provider=provider, max_length=8)
    with secure.local_session(delay_ms=1) as session:
        network = session._network
        processes = children()
        cost = session({"input_ids": torch.full((1, 8), 7), "attention_mask": torch.ones(1, 8)}).cost
        for rank in (0, 1):
            command = [*network.entering(rank), "cat", "/proc/self/net/dev"]
            asked = subprocess.run(command, capture_output=True, text=True, pass_fds=network.descriptors, timeout=60)
            device = next(line.split() for line in asked.stdout.splitlines() if line.strip().startswith("delay:"))
            received, sent = int(device[1]), int(device[9])
            assert min(received, sent) > cost.online_bytes / 2
        network._process.kill()
        started = time.monotonic()
        with pytest.raises(SessionError, match="relay of the delayed link ended"):
            session({"input_ids": torch.full((1, 8), 7), "attention_mask": torch.ones(1, 8)})
        assert time.monotonic() - started < 10
    assert cost.online_seconds > cost.rounds * TRIPS[protocol] * 0.001
    servers = 2  # fork the parties, each in its namespace
    assert len(processes) == 1 + servers + len(secure.manifest.roles)
    assert not any(process.is_running() for process in processes)


@needs_network
def test_a_caller_may_have_many_files_open():
    with many_open_files():
        network = DelayedNetwork(0.01)
    try:
        command = [*network.entering(0), sys.executable, "-c", PING]
        asking = subprocess.run(command, capture_output=True, text=True, pass_fds=network.descriptors, timeout=60)
        assert asking.stdout == "refused\n", asking.stderr
    finally:
        network.close()


@needs_network
def test_the_relay_ends_with_its_caller():
    network = DelayedNetwork(0.01)
    network._caller.close()  # as the kernel does when the process that holds the socket ends
    assert network._process.wait(timeout=10) == 0
    network.close()


class CannedSession:
    """Answers with logits 0, and with costs that encode their role and run."""

    seconds = 2.0

    def __init__(self, converted, timeout, batch_size, delay_ms, *others):
        self.delay_ms, self.calls = delay_ms, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, inputs):
        self.calls += 1
        seconds = self.seconds + self.calls + (100 if self.delay_ms else 0)
        return SimpleNamespace(
            logits=torch.zeros(1, 2), cost=Cost(rounds=10, online_bytes=10**8, online_seconds=seconds)
        )


@pytest.mark.parametrize("seconds, typical, runs", [(2.0, 5.0, 3), (40.0, 41.0, 1)])
def test_report_has_the_measurement_and_the_estimates(monkeypatch, tmp_path, seconds, typical, runs):
    monkeypatch.setattr(secure_model, "LocalSession", CannedSession)
    monkeypatch.setattr(CannedSession, "seconds", seconds)
    classifier().save_pretrained(tmp_path)
    arguments = ["profile", "--architecture", str(tmp_path), "--seq-length", "8", "--delay-ms", "10"]
    report = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert (report["delay_ms"], report["compute_seconds"]) == (10.0, typical)
    assert (report["online_seconds"], report["runs"]) == (101 + seconds, 1)
    assert report["estimated_seconds"] == pytest.approx(
        {"lan": typical + 0.005 + 0.05, "wan": typical + 0.2 + 1, "delay": typical + 0.1}
    )
    plain = json.loads(CliRunner().invoke(cli.app, [*arguments[:-2], "--protocol", "crypten", "--json"]).stdout)
    assert (plain["delay_ms"], plain["online_seconds"], plain["runs"]) == (None, typical, runs)
    assert plain["estimated_seconds"] == pytest.approx({"lan": typical + 0.02 + 0.05, "wan": typical + 0.8 + 1})
    text = CliRunner().invoke(cli.app, arguments).stdout
    for name, value in (("measured", report["online_seconds"]), ("estimated", typical + 0.1)):
        assert re.search(rf"{name}, 10 ms one way\s*│\s*{value:.2f}", text), text


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(delay, "_DEVICE_FILE", str(tmp_path / "tun"))
        with pytest.raises(DelayError, match="needs the device .*tun, open to this user"):
            DelayedNetwork(0.01)
        patch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(DelayError, match="needs `nsenter`"):
            DelayedNetwork(0.01)
    refusing = tmp_path / "refusing.py"
    refusing.write_text("import socket\nsocket.socket(fileno=0).sendall(b'not for you')\n")
    monkeypatch.setattr(delay, "_RELAY", refusing)
    monkeypatch.setattr(delay, "_DEVICE_FILE", os.devnull)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DelayError, match=r"does not allow this user \(not for you\)"):
        DelayedNetwork(0.01)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not children()


def test_wrong_delays_and_cryptens_dealer_are_refused():
    for seconds in (0.0, -0.01, math.nan, math.inf):
        with pytest.raises(SecureRouterValueError, match="`delay_ms` should be a number above 0"):
            DelayedNetwork(seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        secure = to_mpc(classifier(), protocol="crypten", provider="ttp", max_length=8)
    with pytest.raises(SecureRouterValueError, match="provider='tfp'"):
        secure.local_session(delay_ms=1)


def test_an_estimate_adds_computation_trips_and_the_bytes_of_one_direction():
    assert estimate(1.0, 100, 2 * 10**9, NetworkModel(0.01, 1e9)) == pytest.approx(1 + 100 * 0.01 + 1)
    assert estimate(1.0, 100, 2 * 10**9, NetworkModel(0.01, math.inf)) == pytest.approx(2)
