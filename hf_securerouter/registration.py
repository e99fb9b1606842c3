# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tells transformers' auto classes of this package's config and model, as soon as they are imported.

`import hf_securerouter` and `import transformers` may come in either order, and neither imports the other. A finder in
front of `sys.meta_path` lets the other finders do their work, and registers when the outermost of these imports ends:
in the middle of one, modules of transformers or of this package are not whole yet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


MODEL_TYPE = "secure_router"
CONFIG_MODULE, MODEL_MODULE = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"


def register_config() -> None:
    """Let `AutoConfig` know `SecureRouterConfig`."""
    from transformers import AutoConfig

    from .configuration_securerouter import SecureRouterConfig

    AutoConfig.register(MODEL_TYPE, SecureRouterConfig, exist_ok=True)


def register_model() -> None:
    """Let `AutoModelForSequenceClassification` know `SecureRouterForSequenceClassification`."""
    from transformers import AutoModelForSequenceClassification

    from .configuration_securerouter import SecureRouterConfig
    from .modeling_securerouter import SecureRouterForSequenceClassification

    AutoModelForSequenceClassification.register(
        SecureRouterConfig, SecureRouterForSequenceClassification, exist_ok=True
    )


def when_transformers_is_imported() -> None:
    """Register now if transformers' auto classes are imported already, and otherwise once they are."""
    watch = _ImportWatch()
    sys.meta_path.insert(0, watch)
    watch.register_pending()


class _ImportWatch(MetaPathFinder):
    """Watches imports of modules of this package and of transformers, and registers between them."""

    def __init__(self) -> None:
        self._pending = {CONFIG_MODULE: register_config, MODEL_MODULE: register_model}
        self._depth = 0  # of watched imports that are under way, one inside another

    def register_pending(self) -> None:
        """Register what can be registered by now."""
        for module in [name for name in self._pending if name in sys.modules]:
            if self._depth == 0 and module in self._pending:
                self._pending.pop(module)()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self._pending or not fullname.startswith((f"{__package__}.", "transformers.")):
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self._depth += 1
            try:
                execute(module)
            finally:
                self._depth -= 1
            self.register_pending()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
