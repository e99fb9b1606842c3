# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model and config tests, run on tiny pools by `make peer-test`.

`run` runs them and counts, `source` downloads and loads them, `suite` has the pools, `exceptions` the tests that do
not hold for a pool. None of the tests is in this repository: they are in the source distribution of transformers.
"""
