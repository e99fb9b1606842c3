# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Roles leave no core dumps, whoever started them."""

import subprocess
import sys
from pathlib import Path

from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.sessions import fork_server
from tests.support.children import children
from tests.support.deployed import allow_core_dumps
from tests.tiny import pool_model


PROGRAM = """
import ctypes, resource
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def test_a_process_forbids_its_own():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout == "(0, 0) 0\n", done.stderr


def test_the_roles_of_a_local_session_forbid_theirs(tokenizer):
    for server in fork_server._shared:  # its forks have its limits
        allow_core_dumps(server.pid)
    with to_mpc(pool_model(), tokenizer, max_length=8).local_session():
        limits = [Path(f"/proc/{child.pid}/limits").read_text() for child in children()]
    cores = [line.split()[4:6] for text in limits for line in text.splitlines() if line.startswith("Max core")]
    assert len(cores) == 3 and cores == [["0", "0"]] * 3
