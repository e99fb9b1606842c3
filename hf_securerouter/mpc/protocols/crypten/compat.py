# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The one place that imports `crypten`, so that it works on the torch versions this package supports."""

import importlib
import importlib.util
import sys
from types import ModuleType


CRYPTEN_INSTALL = "pip install --no-deps crypten==0.4.1"

_EXPECTED = "torch.onnx._internal.registration"
_MOVED = "torch.onnx._internal.torchscript_exporter.registration"


def import_crypten() -> ModuleType:
    """Import `crypten` and return it.

    CrypTen 0.4.1 imports `torch.onnx._internal.registration`, which torch 2.9 moved below `torchscript_exporter`. This
    function puts the module under its old name into `sys.modules` first; nothing in site-packages is changed. After
    one call a plain `import crypten` works in the same process. A spawned process has to call this function again.

    Returns:
        The `crypten` module.

    Raises:
        ImportError: `crypten`, or a module that it imports, is missing. The message holds the install line.

    Example:
        ```python
        from hf_securerouter.mpc.protocols.crypten.compat import import_crypten

        crypten = import_crypten()
        crypten.init()
        ```
    """
    if importlib.util.find_spec("crypten") is None:
        raise ImportError(
            f"`crypten` is not installed. Install it with `{CRYPTEN_INSTALL}` (its own dependency list cannot be "
            "installed; what it needs comes with hf_securerouter).",
            name="crypten",
        )
    _alias_onnx_registration()
    try:
        return importlib.import_module("crypten")
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise ImportError(
            f"`crypten` is installed but cannot be imported, because `{missing}` is missing or has changed: {error}. "
            f"Repair it with `pip install --upgrade hf_securerouter && {CRYPTEN_INSTALL}`.",
            name="crypten",
        ) from error


def _alias_onnx_registration() -> None:
    """Put torch's ONNX registration module into `sys.modules` under the name that CrypTen imports."""
    if _EXPECTED in sys.modules or _is_importable(_EXPECTED):
        return
    if _is_importable(_MOVED):
        sys.modules[_EXPECTED] = importlib.import_module(_MOVED)


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False
