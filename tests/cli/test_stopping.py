# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A command that is stopped leaves nothing half written, above all no secrets."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hf_securerouter import files
from hf_securerouter.mpc.deployment import save_shares
from tests.support.deployed import Command


def never_done():
    """In the command's process: `share` does not end, and is hung up again while it removes what it wrote."""
    remove = shutil.rmtree

    def wait(*_):
        print("The shares are being written.", flush=True)
        time.sleep(600)

    def hung_up_again(*arguments, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0)  # lets Python run the handler
        remove(*arguments, **options)

    save_shares.weights_digest = wait
    files.shutil.rmtree = hung_up_again


def never_done_under_a_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    never_done()


def never_done_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    never_done()


@pytest.mark.parametrize(
    "before, sent",
    [
        (never_done_under_a_terminal, [signal.SIGHUP]),
        (never_done, [signal.SIGTERM]),
        (never_done_under_nohup, [signal.SIGHUP, signal.SIGTERM]),
    ],
)
def test_a_share_that_is_stopped_leaves_no_secrets(checkpoint, tmp_path, before, sent):
    place = tmp_path / "place"
    place.mkdir()
    command = Command(tmp_path / "log", "share", checkpoint, str(place / "shares"), before=before)
    command.wait_for("The shares are being written")
    (part,) = place.iterdir()
    assert list((part / "dealer").iterdir())
    for number in sent:
        command.signal(number)
    assert command.status() == 128 + sent[-1]
    assert not list(place.iterdir()) and "Traceback" not in command.said


SWALLOWED = """
import os, signal, time, weakref
from hf_securerouter.cli import stopping

class Value:
    pass

def end():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)

stopping.QUIET = 0.1
with stopping.stopped_as_by_an_error():
    value = Value()
    weakref.finalize(value, end)
    del value  # Python drops what the handler raises
    time.sleep(0.2)
    end()
    time.sleep(600)
"""


def test_a_signal_that_comes_later_stops_a_command_that_missed_the_first():
    command = [sys.executable, "-c", SWALLOWED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
