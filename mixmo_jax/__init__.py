"""MixMo in JAX: an ensemble of subnetworks inside one network, at the price of one."""

import pathlib

# The configs lie beside the package in a checkout and inside it once installed: both are
# `mixmo_jax.configs`.
_package = pathlib.Path(__file__).parent
if not (_package / "configs").is_dir():
    __path__.append(str(_package.parent))
