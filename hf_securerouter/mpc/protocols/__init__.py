# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The two-party protocols, one folder each, loaded by name.

`base` defines the interface: a `Sharing` for the owner and the client, a `Program` for each role. `masked` is the
engine, to be deployed; `crypten` is the reference, to compare with. Both have the files `protocol` (the functions
that `base` asks for), `sharing`, `roles` and `encoder`.
"""

from .base import PROTOCOLS, Program, Sharing, load_protocol


__all__ = ["PROTOCOLS", "Program", "Sharing", "load_protocol"]
