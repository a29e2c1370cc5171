"""The mathematics of mixing: arrays in, arrays out.

masks.py         mask functions and their registry `MASKS`
mixing_block.py  schedule of p, masks of the members, mixing of the encoders' outputs
msda.py          mixing of pixels before the encoders: mixup, CutMix
unmix.py         unmixing of the last features, after MixShare
"""

from mixmo_jax.mixing.masks import MASKS

__all__ = ["MASKS"]
