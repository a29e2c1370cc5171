"""What is mixed, how much of it, and what that does to targets and loss: arrays in, arrays out.

`MASKS` is the registry of mask functions, which `mixmo.block` and `msda.method` name. To add one,
write a function like those in `masks.py` and add a line here, or one to the dictionary from a file
of your own.
"""

from mixmo_jax.errors import unknown
from mixmo_jax.mixing.masks import MaskFn, cutmix_mask, linear_mask

MASKS: dict[str, MaskFn] = {"linear": linear_mask, "cutmix": cutmix_mask}

# Pixel mixing has a name of its own for the constant mask.
MSDA_ALIASES = {"mixup": "linear"}


def msda_methods() -> list[str]:
    """Returns the names that `msda.method` takes besides "none"."""
    renamed = MSDA_ALIASES.values()
    return [*MSDA_ALIASES, *(name for name in MASKS if name not in renamed)]


def get_mask_fn(name: str) -> MaskFn:
    """Returns the mask function of a name; pixel mixing's own names are understood, too.

    Raises:
      InputError: if no mask function is registered under the name.
    """
    name = MSDA_ALIASES.get(name, name)
    if name not in MASKS:
        raise unknown(
            "mask function", name, [*MASKS, *MSDA_ALIASES], where="mixmo_jax.mixing.MASKS"
        )
    return MASKS[name]
