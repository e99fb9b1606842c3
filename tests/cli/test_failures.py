# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a command ends that fails: one block and a status; what nobody foresaw is not printed, as it may hold a text."""

import errno
import warnings

import pytest
import typer
from typer.testing import CliRunner

from hf_securerouter import cli
from hf_securerouter.cli.failures import Commands, debugging
from hf_securerouter.errors import (
    BadRowsError,
    FileError,
    SecureRouterError,
    SecureRouterValueError,
    SecureRouterWarning,
)
from tests.support.commands import COMMANDS


ENDINGS = [
    (SecureRouterValueError("`quotas` should be counts."), 2, "securerouter: `quotas` should be counts.\n"),
    (BadRowsError("inputs", {3: "is empty"}), 2, "securerouter: `inputs[3]` is empty. Correct"),
    (
        FileError("It is cut", "a/b.json", "copy it"),
        2,
        "It is cut.\n  where: a/b.json\n  remedy: copy it.\n",
    ),
    (ImportError("`crypten` is not installed."), 2, "securerouter: `crypten` is not installed.\n"),
    (
        FileNotFoundError(errno.ENOENT, "No such file", "in.jsonl"),
        2,
        "No such file.\n  where: in.jsonl\n  remedy: correct",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied.\n  where: x\n"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "securerouter: No space left on device.\n"),
    (SecureRouterError("party0 is gone."), 1, "securerouter: party0 is gone.\n"),
    (KeyError("a secret text"), 1, "securerouter: KeyError, which was not foreseen.\n  where: "),
    (ValueError("a secret text"), 1, "securerouter: ValueError, which was not foreseen."),
]


def failing(error):
    app = Commands()

    @app.callback()
    def options(debug: bool = False):
        debugging.set(debug)

    @app.command()
    def fail(count: int = 1):
        raise error

    return app


@pytest.mark.parametrize("error, status, said", ENDINGS)
def test_an_error_is_one_block_with_its_status(error, status, said):
    done = CliRunner().invoke(failing(error), ["fail"])
    assert done.exit_code == status and said in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 3
    shown = CliRunner().invoke(failing(error), ["--debug", "fail"])
    assert shown.exit_code == status and said in shown.stderr
    assert "Traceback" in shown.stderr and type(error).__name__ in shown.stderr


def test_an_exit_and_an_option_that_is_wrong_are_left_to_typer():
    done = CliRunner().invoke(failing(typer.Exit(3)), ["fail"])
    assert done.exit_code == 3 and done.stderr == ""
    done = CliRunner().invoke(failing(KeyError("x")), ["fail", "--count", "many"])
    assert done.exit_code == 2 and "--count" in done.stderr and "securerouter:" not in done.stderr


def test_every_command_ends_so():
    for command in cli.app.registered_commands:
        assert command.callback.__wrapped__.__name__ in COMMANDS
    assert len(cli.app.registered_commands) == len(COMMANDS)


def test_a_warning_of_the_package_is_printed_without_a_line_of_code(monkeypatch, capsys):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args: others.append(args))
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    warnings.showwarning(SecureRouterWarning("Look out."), SecureRouterWarning, "a.py", 3)
    warnings.showwarning(UserWarning("Another one."), UserWarning, "b.py", 4)
    assert capsys.readouterr().err == "securerouter: warning: Look out.\n"
    assert [args[2:] for args in others] == [("b.py", 4)]
