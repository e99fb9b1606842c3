# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Names of checkpoints: ids of the Hub, which may be published, and paths of this machine, which may not."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_hub_id(name: str) -> bool:
    """Whether a checkpoint's name is a Hub id, which may be published, rather than a path of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not os.path.exists(name)


def without_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A config's dict without a path of this machine as the name of a checkpoint, in configs inside it either."""
    return {
        name: without_local_paths(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "_name_or_path" or is_hub_id(value or "")
    }
