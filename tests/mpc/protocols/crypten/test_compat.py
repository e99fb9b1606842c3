# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""CrypTen imports on the supported torch versions, and a missing CrypTen is an error with a remedy."""

import subprocess
import sys
import textwrap

import pytest

from hf_securerouter.mpc.protocols.crypten import compat as crypten_compat


pytestmark = pytest.mark.timeout(120)


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, since an import happens once in a process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100, check=False
    )


def test_crypten_imports_in_a_fresh_process():
    done = run_python(
        """
        from hf_securerouter.mpc.protocols.crypten.compat import import_crypten
        crypten = import_crypten()
        import crypten as again
        assert again is crypten
        print(crypten.__version__)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.4.1"


def test_import_twice_gives_the_same_module():
    assert crypten_compat.import_crypten() is crypten_compat.import_crypten()


def test_importing_the_compatibility_module_does_not_load_crypten():
    done = run_python(
        """
        import sys
        import hf_securerouter.mpc.protocols.crypten.compat
        print("crypten" in sys.modules, "torch.onnx._internal.registration" in sys.modules)
        """
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_missing_crypten_names_the_install_line():
    done = run_python(
        """
        import importlib.util, sys
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "crypten" else find_spec(name, *rest)
        from hf_securerouter.mpc.protocols.crypten.compat import import_crypten
        try:
            import_crypten()
        except ImportError as error:
            print(error.name, error)
        """
    )
    assert done.stdout.startswith("crypten `crypten` is not installed"), done.stderr
    assert "pip install --no-deps crypten==0.4.1" in done.stdout


def test_missing_dependency_of_crypten_is_named():
    done = run_python(
        """
        import sys
        sys.modules["onnx"] = None  # the import system answers with ModuleNotFoundError
        from hf_securerouter.mpc.protocols.crypten.compat import import_crypten
        try:
            import_crypten()
        except ImportError as error:
            print(error)
            print(type(error.__cause__).__name__)
        """
    )
    assert "`onnx` is missing" in done.stdout, done.stderr
    assert "pip install --upgrade hf_securerouter" in done.stdout
    assert done.stdout.strip().endswith("ModuleNotFoundError")


def test_alias_leaves_a_torch_alone_that_still_has_the_module(monkeypatch):
    monkeypatch.setattr(crypten_compat, "_EXPECTED", "torch.onnx.symbolic_helper")
    monkeypatch.delitem(sys.modules, "torch.onnx.symbolic_helper", raising=False)
    crypten_compat._alias_onnx_registration()
    assert "torch.onnx.symbolic_helper" not in sys.modules


def test_alias_is_not_made_where_torch_has_neither_module(monkeypatch):
    monkeypatch.setattr(crypten_compat, "_EXPECTED", "torch.onnx._internal.nowhere")
    monkeypatch.setattr(crypten_compat, "_MOVED", "torch.nowhere.registration")
    crypten_compat._alias_onnx_registration()
    assert "torch.onnx._internal.nowhere" not in sys.modules


def test_nothing_in_site_packages_is_patched():
    crypten = crypten_compat.import_crypten()
    from torch.onnx._internal.torchscript_exporter import registration

    assert sys.modules["torch.onnx._internal.registration"] is registration
    assert crypten.nn.onnx_converter.registry is registration.registry
