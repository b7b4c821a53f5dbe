"""Fine-tuning of one tower: the image tower learns, the text tower stays as it is (LiT the other way round).

    python examples/finetune_tower.py [MODEL]

MODEL is whatever `jclip.load` takes; without it a tiny model of random weights.
"""

import sys

import jax
import optax

import jclip
from jclip.config import Augment
from jclip.data import train_transform
from jclip.losses import contrastive

TRAINED = ("image", "image_projection")


def main(name: str = "ViT-tiny-test", *, steps: int = 20, batch_size: int = 32) -> tuple[jclip.Params, jclip.Params]:
    """Trains, and returns the parameters before and after."""
    model = jclip.load(name)
    trained = {key: value for key, value in model.params.items() if key in TRAINED}
    frozen = {key: value for key, value in model.params.items() if key not in TRAINED}
    optimizer = optax.adamw(1e-3)

    def loss_fn(trained: jclip.Params, frozen: jclip.Params, batch: dict[str, jax.Array]) -> jax.Array:
        encoded = model.apply({**trained, **frozen}, batch)
        return contrastive(encoded["image"].z, encoded["text"].z, model.logit_scale(frozen))

    @jax.jit
    def train_step(
        trained: jclip.Params, state: optax.OptState, batch: dict[str, jax.Array]
    ) -> tuple[jclip.Params, optax.OptState, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(trained, frozen, batch)
        updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, loss

    transforms = {key: train_transform(tower, Augment()) for key, tower in model.config.towers.items()}
    state = optimizer.init(trained)
    with jclip.make_loader("shapes:train", transforms, batch_size=batch_size) as loader:
        for step in range(steps):
            trained, state, loss = train_step(trained, state, next(loader).arrays)
            if step % 5 == 0:
                print(f"step {step:2d}  loss {loss:.3f}")
    return model.params, {**trained, **frozen}


if __name__ == "__main__":
    main(*sys.argv[1:])
