"""MixMo in JAX: an ensemble of subnetworks inside one network, at the price of one."""

import importlib
import pathlib

# The configs lie beside the package in a checkout and inside it once installed: both are
# `mixmo_jax.configs`.
_package = pathlib.Path(__file__).parent
if not (_package / "configs").is_dir():
    __path__.append(str(_package.parent))

_LAZY = {"load": "inference", "Model": "inference", "from_torch": "torch_import"}
__all__ = ["Model", "from_torch", "load", "metrics"]


def __getattr__(name: str):
    """Imports what needs JAX only when it is asked for."""
    if name == "metrics":
        return importlib.import_module(f"{__name__}.metrics")
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
