# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tests of `hf_securerouter/mpc/conversion`."""
