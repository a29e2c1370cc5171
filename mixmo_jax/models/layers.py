"""The layers that all networks share."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixmo_jax.models.cpu_convolution import conv_general_dilated, is_wide

# He normal with fan-in, truncated at two standard deviations; the scale is after the truncation.
conv_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
# The same for stacked kernels [M, ...], whose leading axis does not count.
stacked_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", batch_axis=(0,))


def make_conv(dtype: jnp.dtype, padding: str | int) -> functools.partial:
    """Returns a constructor `conv(features, kernel_size, strides)` without bias."""
    return functools.partial(
        nn.Conv,
        use_bias=False,
        padding=padding,
        dtype=dtype,
        kernel_init=conv_init,
        conv_general_dilated=conv_general_dilated,
    )


def make_norm(dtype: jnp.dtype, train: bool, axis_name: str | None) -> functools.partial:
    """Returns a constructor of BatchNorm.

    Flax stores the biased running variance; the reference program stores the unbiased one, which is
    n / (n - 1) times as large. At the last stage of a WRN, n = 64 * 8 * 8: a factor of 1 + 2.4e-4.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over the spatial dimensions, in float32 or wider: [B, h, w, F] → [B, F]."""
    return x.astype(x.dtype if is_wide(x.dtype) else jnp.float32).mean((1, 2))
