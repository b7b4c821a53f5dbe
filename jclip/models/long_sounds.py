"""Parts of a long sound, and all of it shrunk to the length of one, as log-mel spectrograms (Wu et al. 2023, section 3.2)."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def parts_of(logs: Array, frames: Array, chunk: int) -> tuple[Array, Array]:
    """All of each sound shrunk to `chunk` frames, and three parts of it, one from each third of the places where one can begin.

    The references draw each place at random from its third; here it is the middle of it, so that a sound is always the same. Of
    a sound that is no longer than `chunk`, all four are the sound itself.

    Args:
        logs: f32 [b, t, mels], whose frames from the end of a sound on mean nothing.
        frames: i32 [b], of each sound, at least `chunk`.
        chunk: frames of a part.

    Returns:
        f32 [b, 4, chunk, mels]; bool [b], True where a sound is longer.
    """

    def of_one(logs: Array, frames: Array) -> Array:
        places = frames - chunk + 1  # where a part may begin
        size, rest = places // 3, places % 3
        counts = size + (jnp.arange(3) < rest)  # as np.array_split divides them
        starts = jnp.where(counts > 0, jnp.cumsum(counts) - counts + counts // 2, 0)
        parts = [lax.dynamic_slice_in_dim(logs, starts[i], chunk) for i in range(3)]
        return jnp.stack([shrunk(logs, frames, chunk), *parts])

    return jax.vmap(of_one)(logs, frames), frames > chunk


def shrunk(logs: Array, frames: Array, chunk: int) -> Array:
    """The first `frames` of f32 [t, mels] as `chunk` frames, linearly between the two at each place, without antialiasing."""
    scale = frames.astype(jnp.float32) / chunk
    places = jnp.maximum(scale * (jnp.arange(chunk, dtype=jnp.float32) + 0.5) - 0.5, 0)
    before = places.astype(jnp.int32)
    weight = (places - before)[:, None]
    after = jnp.minimum(before + 1, frames - 1)
    return logs[before] * (1 - weight) + logs[after] * weight
