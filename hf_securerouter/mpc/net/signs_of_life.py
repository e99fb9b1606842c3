# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Signs of life on the parties' link while a party computes for long, or waits for the dealer.

With them the other party may count this one as hung after seconds of silence, however long a computation takes.
"""

from __future__ import annotations

import threading

from .link import Link


class SignsOfLife:
    """Sends a sign of life whenever a link has been idle for a second; a context manager.

    Args:
        link (`Link`): The link, which another thread uses meanwhile.
        interval (`float`): Seconds.

    Example:
        ```python
        with SignsOfLife(link):
            party.answer(inputs)
        ```
    """

    def __init__(self, link: Link, interval: float = 1.0) -> None:
        self._link, self._interval, self._over = link, interval, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._interval / 4):
            self._link.show_life(self._interval)
