# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Registers this package's config and model in transformers' auto classes, as soon as those are imported.

`import hf_securerouter` and `import transformers` may come in either order, and neither imports the other. For a
module that is not imported yet, a finder at the front of `sys.meta_path` waits; the other finders still load it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


MODEL_TYPE = "secure_router"


_CONFIG, _MODEL = "SecureRouterConfig", "SecureRouterForSequenceClassification"
_OWN = {_CONFIG: "hf_securerouter.configuration_securerouter", _MODEL: "hf_securerouter.modeling_securerouter"}


def _under_way(name: str) -> bool:
    """Whether the module of this class is being imported; the end of its import registers it again."""
    module = sys.modules.get(_OWN[name])
    return module is not None and not hasattr(module, name)


def register_config() -> None:
    """Register `SecureRouterConfig` in `AutoConfig`."""
    if not _under_way(_CONFIG):
        from transformers import AutoConfig

        from .configuration_securerouter import SecureRouterConfig

        AutoConfig.register(MODEL_TYPE, SecureRouterConfig, exist_ok=True)


def register_model() -> None:
    """Register `SecureRouterForSequenceClassification` in `AutoModelForSequenceClassification`."""
    if not _under_way(_MODEL):
        from transformers import AutoModelForSequenceClassification

        from .configuration_securerouter import SecureRouterConfig
        from .modeling_securerouter import SecureRouterForSequenceClassification

        AutoModelForSequenceClassification.register(
            SecureRouterConfig, SecureRouterForSequenceClassification, exist_ok=True
        )


_REGISTERED = {
    "transformers.models.auto.configuration_auto": register_config,
    "transformers.models.auto.modeling_auto": register_model,
    _OWN[_CONFIG]: register_config,
    _OWN[_MODEL]: register_model,
}


def when_transformers_is_imported() -> None:
    """Register now with the modules that are imported already, and with the others when they are imported."""
    for name, register in _REGISTERED.items():
        if name in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _AfterImport(name, register))


class _AfterImport(MetaPathFinder):
    """Calls a function after a module was imported, once.

    Args:
        name (`str`): The module.
        then (callable): The function to call.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)  # by the other finders
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            self._then()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
