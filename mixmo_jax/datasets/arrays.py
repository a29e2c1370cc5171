"""Images and labels that are handed over in Python, see `mixmo_jax.fit`."""

import ml_collections

from mixmo_jax.errors import InputError

NAME = "arrays"


def load(config: ml_collections.ConfigDict) -> None:
    """Stands in the registry for what cannot be loaded.

    Raises:
      InputError: always.
    """
    del config
    reason = "its images are handed over in Python and not kept; call mixmo_jax.fit with them"
    raise InputError(f"dataset.name={NAME!r}: {reason}")
