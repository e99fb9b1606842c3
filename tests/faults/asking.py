# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Clients that ask deployed servers one question after another, each in a thread, and count how it went."""

import threading
import time
from dataclasses import dataclass, field

from hf_securerouter.errors import SecureRouterError


@dataclass
class Counts:
    """How questions went. One thread writes a client's counts."""

    answered: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)


class Asker:
    """One client.

    Args:
        session (`Session`): Not open yet.
        question: What it asks, again and again.
        is_right (callable): Whether a result is right.
    """

    def __init__(self, session, question, is_right):
        self.counts, self._over, self._since = Counts(), threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(session, question, is_right), daemon=True)
        self._thread.start()

    def _run(self, session, question, is_right):
        while not self._over.is_set():
            try:
                with session:
                    while not self._over.is_set():
                        self._ask(session, question, is_right)
            except SecureRouterError:
                self.counts.refused += 1
                self._since = time.monotonic()
                self._over.wait(0.2)

    def _ask(self, session, question, is_right):
        start = self._since = time.monotonic()
        result = session(question)
        now = self._since = time.monotonic()
        self.counts.answered += 1
        self.counts.wrong += not is_right(result)
        self.counts.seconds.append(now - start)
        self.counts.finished.append(now)

    def hangs(self, limit):
        """Whether its last question has had no answer and no error for `limit` seconds."""
        return self._thread.is_alive() and time.monotonic() - self._since > limit

    def finish(self):
        """Let it ask no further question."""
        self._over.set()

    def stop(self, limit):
        """Let it finish its question; False if it does not within `limit` seconds."""
        self.finish()
        self._thread.join(limit)
        return not self._thread.is_alive()
