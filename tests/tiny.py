"""Registers the tiny network of the documentation's example, which compiles fast; a plugin."""

import pathlib

from mixmo_jax.datasets import DATASETS
from mixmo_jax.errors import execute_module
from mixmo_jax.mixing import MASKS

EXAMPLE = pathlib.Path(__file__).parent.parent / "docs" / "examples" / "stripes.py"

execute_module(EXAMPLE)
del DATASETS["bars"], MASKS["stripes"]
