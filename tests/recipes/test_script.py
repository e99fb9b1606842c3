# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a training script ends, and what it prints of warnings."""

import errno
import warnings

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError, warn
from hf_securerouter.recipes.script import run_script


@pytest.fixture(autouse=True)
def others(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("SECUREROUTER_DEBUG", raising=False)


def raising(error):
    def main():
        raise error

    return main


def test_what_its_user_can_mend_is_one_block(capsys):
    for error, status in ((SecureRouterValueError("`quotas` should be counts."), 2), (SecureRouterError("gone."), 1)):
        with pytest.raises(SystemExit) as ended:
            run_script(raising(error))
        assert ended.value.code == status
        assert capsys.readouterr().err == f"securerouter: {error}\n"


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    with pytest.raises(KeyError):
        run_script(raising(KeyError("x")))
    monkeypatch.setenv("SECUREROUTER_DEBUG", "1")
    with pytest.raises(SecureRouterValueError):
        run_script(raising(SecureRouterValueError("x")))


def raising_in(library, error):
    """A `main` that calls a function of a library, which raises."""
    scope = {"__name__": library, "error": error}
    exec("def get():\n    raise error", scope)
    return lambda: scope["get"]()


def test_what_a_library_did_not_get_is_one_line(capsys, monkeypatch):
    unreachable = OSError("We couldn't connect to the Hub.\nCheck your internet connection.")
    missing = LocalEntryNotFoundError("There is no\nsuch file.")
    for library, error, status in (("transformers.utils.hub", unreachable, 1), ("huggingface_hub.x", missing, 2)):
        with pytest.raises(SystemExit) as ended:
            run_script(raising_in(library, error))
        assert ended.value.code == status
        assert capsys.readouterr().err == f"securerouter: {' '.join(str(error).split())}\n"
    monkeypatch.setenv("SECUREROUTER_DEBUG", "1")
    with pytest.raises(OSError, match="couldn't connect"):
        run_script(raising_in("transformers.utils.hub", unreachable))


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("transformers.utils.hub", OSError(errno.ENOSPC, "No space left on device")),
        ("transformers.utils.hub", AttributeError("'NoneType' object has no attribute 'x'")),
        ("transformers_of_mine", OSError("unforeseen")),
        ("hf_securerouter.files", OSError("unforeseen")),
    ],
)
def test_other_errors_beside_it_keep_their_traceback(module, error):
    with pytest.raises(type(error)):
        run_script(raising_in(module, error))


def test_a_warning_is_printed_once(capsys):
    def main():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for text in ("wide", "wide", "narrow"):
                warn(text)

    run_script(main)
    assert capsys.readouterr().err == "securerouter: warning: wide\nsecurerouter: warning: narrow\n"
