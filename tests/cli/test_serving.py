# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Options of the roles' commands, and how a server ends."""

import os
import subprocess
import sys

import pytest
import typer

from hf_securerouter.cli.serving import memory_size


def test_sizes_have_a_unit_or_are_of_bytes():
    sizes = {"12GB": 12 * 10**9, "1.5g": 1_500_000_000, "800 MB": 800 * 10**6, "64": 64, "2TB": 2 * 10**12, "1k": 1000}
    assert {text: memory_size(text) for text in sizes} == sizes
    for text in ("", "GB", "-1", "0", "12 apples", "1e9", "nan", "12GiB"):
        with pytest.raises(typer.BadParameter, match="is not a size such as 12GB"):
            memory_size(text)


STOPPED = """
import os, signal, time, weakref
from hf_securerouter.cli import serving

class Value:
    pass

def signals(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0)  # lets Python run the handler

def in_a_finalizer(*numbers):  # where Python drops what the handler raises
    value = Value()
    weakref.finalize(value, signals, *numbers)
    del value

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` lets children ignore it
serving.GRACE = {grace}
with serving.until_stopped():
    {signals}
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "signals, grace",
    [
        ("signals(signal.SIGTERM)", 600),
        ("signals(signal.SIGINT)", 600),
        ("signals(signal.SIGHUP)", 600),
        ("in_a_finalizer(signal.SIGTERM)", 0.1),
        ("in_a_finalizer(signal.SIGTERM); signals(signal.SIGTERM)", 600),
        ("in_a_finalizer(signal.SIGINT); signals(signal.SIGTERM)", 600),
    ],
)
def test_a_signal_ends_a_server_also_in_a_finalizer_and_a_second_one_at_once(signals, grace):
    code = STOPPED.format(grace=grace, signals=signals)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stderr == "Stopped.\n") == ("finalizer" not in signals)


def test_a_signal_ends_a_server_whose_log_nobody_reads_any_more():
    reading, writing = os.pipe()
    os.close(reading)
    code = STOPPED.format(grace=600, signals="signals(signal.SIGINT)")
    try:
        done = subprocess.run([sys.executable, "-c", code], stderr=writing, timeout=60, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 0
