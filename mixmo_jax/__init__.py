"""MixMo in JAX: an ensemble of subnetworks inside one network, at the cost of one at inference."""

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

__version__ = "0.3.0"

# Imported on first use: JAX takes a second to import.
_LAZY = {
    "Model": "inference.model",
    "fit": "training.train",
    "from_torch": "inference.torch_checkpoints",
    "get_config": "config",
    "load": "inference.load",
}
__all__ = ["Model", "fit", "from_torch", "get_config", "load", "metrics"]


def __getattr__(name: str):
    if name == "metrics":
        return importlib.import_module(f"{__name__}.evaluation")
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _hide_false_alarms() -> None:
    """Hides messages of jaxlib 0.10 that programs of its own cache do not fit this CPU.

    They do: github.com/openxla/xla/issues/44565. It must be set before jaxlib is imported.
    """
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _import_configs_of_checkout() -> None:
    """Makes `mixmo_jax.configs` of the folder beside the package; a wheel has it inside."""
    package = pathlib.Path(__file__).parent
    folder = package.parent / "configs"
    if (package / "configs").is_dir() or not folder.is_dir():
        return
    name = f"{__name__}.configs"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    globals()["configs"] = module


_hide_false_alarms()
_import_configs_of_checkout()
