# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a Hugging Face model to what is shared and what is public.

`description` says what a model is made of, `validation` lists everything that cannot be converted, `weights` collects
the tensors to share, `calibration` measures bounds on samples, `client` embeds texts. `converted` holds the result.
"""
