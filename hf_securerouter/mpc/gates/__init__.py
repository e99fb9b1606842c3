# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The gates of the masked protocol, one concept a file."""
