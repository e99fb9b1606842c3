# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Changes of an allow list: none is lost, and the server's user can read every new list."""

import fcntl
import os
import stat
import threading

import pytest

from hf_securerouter.cli import users as users_module
from hf_securerouter.cli.users import change_users
from hf_securerouter.errors import FileError, SecureRouterValueError
from hf_securerouter.mpc.net import trusted
from hf_securerouter.mpc.net.certificates import Certificate, list_bytes, make_key
from tests.support.commands import run


LIMIT = 30.0


@pytest.fixture
def server(tmp_path):
    """A server's folder whose list has ada and eve; bob's certificate lies beside it."""
    made = {}
    for name in ("ada", "bob", "eve"):
        path = tmp_path / f"{name}.pem"
        path.write_bytes(make_key("client", name)["certificate.pem"])
        made[name] = Certificate.load(path)
    folder = tmp_path / "party0"
    folder.mkdir(mode=0o700)
    (folder / "users.json").write_bytes(list_bytes([made["ada"], made["eve"]]))
    return folder


def names(folder):
    return [one.name for one in trusted.read_list(folder / "users.json")]


def test_a_revocation_that_comes_while_another_command_adds_is_kept(server, monkeypatch):
    write, revoking = trusted.write_list, threading.Thread(target=change_users, args=(server, [], ["eve"]))

    def interrupted(path, certificates):
        monkeypatch.setattr(trusted, "write_list", write)
        revoking.start()
        revoking.join(0.5)  # the whole of the other command, if nothing holds it back
        write(path, certificates)

    monkeypatch.setattr(trusted, "write_list", interrupted)
    change_users(server, [server.parent / "bob.pem"], [])
    revoking.join(LIMIT)
    assert not revoking.is_alive() and names(server) == ["ada", "bob"]


def test_a_command_that_never_ends_is_named_and_lists_can_be_read_meanwhile(server, monkeypatch):
    monkeypatch.setattr(users_module, "PATIENCE", 0.1)
    held = os.open(server, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SecureRouterValueError, match="`folder` .* another command is changing its list"):
            change_users(server, [], ["eve"])
        assert [one["name"] for one in change_users(server, [], [])] == ["ada", "eve"]
    finally:
        os.close(held)
    assert [one["name"] for one in change_users(server, [], ["eve"])] == ["ada"] == names(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_a_list_to_the_user_of_the_server(server):
    for path in (server, server / "users.json"):
        os.chown(path, 12345, 12346)
    done = run("users", str(server), "--revoke", "eve")
    assert done.exit_code == 0 and names(server) == ["ada"]
    status = (server / "users.json").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 12346, 0o600)


def test_a_user_who_cannot_leave_it_so_is_refused(server, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(FileError, match="users.json belongs to another user"):
        change_users(server, [], ["eve"])
    assert names(server) == ["ada", "eve"] and [path.name for path in server.iterdir()] == ["users.json"]
