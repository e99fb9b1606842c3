# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Runs the suite, and ends with one line of JSON: how many tests passed, how many failed, how many are excepted.

A test counts once, however many kinds of pools it runs on, and has failed if it failed on one of them. In a whole run,
a test that is excepted and fails on no kind has failed too: its exception has to go. Arguments are pytest's, for
example `-k resize`.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.peer.exceptions import EXCEPTIONS, is_excepted
from tests.peer.source import tests_folder


class Counter:
    """A plugin of pytest that collects the outcome of every test; a test with a subtest that fails has failed."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.excepted: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            (self.excepted if _is_excepted(report) else self.failed).add(_test(report))
        elif report.passed and report.when == "call":
            self.passed.add(_test(report))

    @pytest.hookimpl(tryfirst=True)  # before the hook that names subtests
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        return ("excepted", "x", "EXCEPTED") if report.failed and _is_excepted(report) else None

    def counts(self, ran: Iterable[str]) -> dict[str, int]:
        """The line of JSON; `ran` names the tests of which an exception has to show."""
        for test in sorted(set(ran) & EXCEPTIONS.keys() - self.excepted):
            print(f"{test} fails no longer as tests/peer/exceptions.py says: remove it there, or correct its error.")
            self.failed.add(test)
        excepted = self.excepted - self.failed
        passed = self.passed - self.failed - excepted
        return {"passed": len(passed), "failed": len(self.failed), "excepted": len(excepted)}


def _test(report: Any) -> str:
    return report.nodeid.split("::")[-1]


def _is_excepted(report: Any) -> bool:
    kind = report.nodeid.split("::")[-2].removesuffix("Model")
    return is_excepted(kind, _test(report), report.longreprtext)


def main(arguments: list[str]) -> int:
    """Runs the tests.

    Returns:
        `int`: 0 if no test failed, else 1; pytest's own status if it could not run them.
    """
    print(f"The tests of transformers {transformers.__version__}, from {tests_folder()}", flush=True)
    counter = Counter()
    suite = str(Path(__file__).with_name("suite.py"))
    own = ["--noconftest", "-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-W", "ignore"]
    status = pytest.main([suite, *own, "--tb=short", "-q", *arguments], plugins=[counter])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)
    whole = not any(argument.startswith("-k") for argument in arguments)
    print(json.dumps(counter.counts(EXCEPTIONS if whole else ())))
    return int(bool(counter.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
