# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference: CrypTen's two-party protocol, to compare with and not to deploy.

`protocol` is the interface to the rest of the package. `sharing` shares weights and inputs, `roles` are the parties
and the dealer. `encoder` is made of `functions` over CrypTen's tensors, in the format of `fixed_point`. `compat`
imports CrypTen; `communicator` counts its messages and gives them deadlines; `link_adapter` runs it over a `Link`.
"""
