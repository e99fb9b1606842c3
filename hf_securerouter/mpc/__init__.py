# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Everything that runs on secret shares.

Two parties hold additive shares of the weights and of the embedded inputs. A dealer hands them correlated randomness
that depends on no input. The client makes and reconstructs shares.

The floors, from the ground up; a folder imports its own floor and those below:

    ring, net              arithmetic mod 2^K and randomness; sockets, frames, TLS, counting
    gates, models          one secure function per file; the public description of an encoder and of a model
    tuples                 the plan of a program, the dealer's randomness for it, and its single use
    protocols              the masked engine and the CrypTen reference, with the same file names
    conversion             from a Hugging Face model to shared weights and a public manifest
    sessions               queries to roles on this machine
    deployment             roles on machines of different owners
    `secure_model`         a converted model: run it on this machine, or save its shares
    `convert`, `profiler`  the entry point `to_mpc`; the cost of one encoder, also of `profiled_models` by name

Importing this package loads neither `crypten` nor a role: those are loaded when a model is converted. Nothing in it
imports the trainer side.

To add a gate, follow `gates/relu.py`: a frozen dataclass whose fields are public. `deal` draws masks and gives words;
`run` reads the words in the same order, yields its openings and returns shares. The docstring says who sees what, why
every opening is uniform, and what the gate costs. Tests run a gate with `tests/support/harness.py`, compare it with
exact arithmetic, and enumerate the parties' views in a tiny ring as `tests/mpc/gates/test_views.py` does.
"""
