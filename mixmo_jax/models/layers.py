"""The convolutions and normalisations that all networks here are made of."""

import functools

import flax.linen as nn
import jax.numpy as jnp

# He normal on the fan-in, truncated at two standard deviations; the scale is that after the
# truncation. The leading axis of a stacked kernel [M, ...] does not count.
conv_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
stacked_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", batch_axis=(0,))


def make_conv(dtype: jnp.dtype, padding: str | int) -> functools.partial:
    """Returns a constructor `conv(features, kernel_size, strides, …)` of one convolution."""
    return functools.partial(
        nn.Conv, use_bias=False, kernel_init=conv_init, padding=padding, dtype=dtype
    )


def make_norm(dtype: jnp.dtype, train: bool, axis_name: str | None) -> functools.partial:
    """Returns a constructor of one BatchNorm.

    The running variance is that of the batch, biased; the reference program stores the unbiased
    one, n / (n - 1) times as large, n being batch times map: 1 + 2.4e-4 at WRN's last stage for a
    batch of 64.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )


def global_average_pool(x: jnp.ndarray) -> jnp.ndarray:
    """[B, h, w, F] → [B, F], in float32 or better."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
