# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How a training script ends, and what it prints of warnings."""

import warnings

import pytest

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


def test_a_warning_is_printed_once(capsys):
    def main():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for text in ("wide", "wide", "narrow"):
                warn(text)

    run_script(main)
    assert capsys.readouterr().err == "securerouter: warning: wide\nsecurerouter: warning: narrow\n"
