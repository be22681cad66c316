"""Image transforms, which run on the device inside the jitted step."""

import jax
import jax.numpy as jnp

from aia_jax.utils.errors import InputError


def random_flips(images: jax.Array, key: jax.Array, flips: str = "both") -> jax.Array:
    """Flips each image up-down with probability 1/2 and left-right with probability 1/2.

    Args:
        images: `[B, H, W, C]`, any dtype.
        flips: "both", "horizontal" for left-right only, or "none".
    """
    up_down, left_right = jax.random.bernoulli(key, 0.5, (2, images.shape[0], 1, 1, 1))
    if flips == "both":
        images = jnp.where(up_down, images[:, ::-1], images)
    return images if flips == "none" else jnp.where(left_right, images[:, :, ::-1], images)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Computes `(x / 255 - mean) / std` in float32.

    Args:
        images: uint8 `[B, H, W, 3]`.
        mean, std: mean and standard deviation of each channel, on the scale 0..1.
    """
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def mixup(images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replaces image i < B / 2 by the mean of the images i and B / 2 + i, and its labels by the labels of both images.

    Source: the reference implementation of image annotation; see `aia_jax.data.annotation.annotations`.

    Args:
        images: float `[B, H, W, C]`, with C channels.
        targets: multi-hot `[B, L]`, for L labels.

    Raises:
        InputError: B is odd.
    """
    half, odd = divmod(images.shape[0], 2)
    if odd:
        raise InputError(f"config.mixup needs an even batch_size, not {images.shape[0]}")
    images = images.at[:half].set((images[:half] + images[half:]) / 2)
    targets = targets.at[:half].set(jnp.maximum(targets[:half], targets[half:]))
    return images, targets
