"""What is mixed, how much of it, and what that does to targets and loss: arrays in, arrays out.

`MASKS` is the registry of mask functions, which `mixmo.block` and `msda.method` name. To add one,
write a function like those in `masks.py` and `blocks.py` and add a line here, or one to the
dictionary from a file of your own.
"""

from mixmo_jax.errors import InputError, unknown
from mixmo_jax.mixing import blocks
from mixmo_jax.mixing.masks import MaskFn, cutmix_mask, linear_mask

MASKS: dict[str, MaskFn] = {
    "linear": linear_mask,
    "cutmix": cutmix_mask,
    "rows": blocks.rows_mask,
    "columns": blocks.columns_mask,
    "channels": blocks.channels_mask,
    "random_channels": blocks.random_channels_mask,
    "noise": blocks.noise_mask,
    "cow": blocks.cow_mask,
    "patchup_hard": blocks.patchup_hard_mask,
    "patchup_soft": blocks.patchup_soft_mask,
    "patchup_2d": blocks.patchup_2d_mask,
}

# Pixel mixing has a name of its own for the constant mask.
MSDA_ALIASES = {"mixup": "linear"}

# Those that cut only channels do not mix pixels, all channels of which have one mask.
CHANNEL_MASKS = {"channels", "random_channels"}


def msda_methods() -> list[str]:
    """Returns the names that `msda.method` takes besides "none"."""
    left_out = {*MSDA_ALIASES.values(), *CHANNEL_MASKS}
    return [*MSDA_ALIASES, *(name for name in MASKS if name not in left_out)]


def get_mask_fn(name: str) -> MaskFn:
    """Returns the mask function of a name.

    Raises:
      InputError: if no mask function is registered under the name.
    """
    if name not in MASKS:
        raise unknown("mask function", name, MASKS, where="mixmo_jax.mixing.MASKS")
    return MASKS[name]


def get_msda_fn(name: str) -> MaskFn:
    """Returns the mask function of a name for the mixing of pixels, which may be "mixup".

    Raises:
      InputError: if no mask function is registered under the name, or if it cuts only channels.
    """
    if name in CHANNEL_MASKS:
        raise InputError(
            f"{name}: it cuts only channels, which the mixing of pixels does not; expected one of "
            + ", ".join(msda_methods())
        )
    return get_mask_fn(MSDA_ALIASES.get(name, name))
