# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The two-party protocols, one module each, loaded by name."""

from .base import PROTOCOLS, Program, Sharing, load_protocol


__all__ = ["PROTOCOLS", "Program", "Sharing", "load_protocol"]
