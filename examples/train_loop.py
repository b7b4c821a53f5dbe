"""A training loop of one's own: an optimizer of optax, and a loss beside the contrastive one.

    python examples/train_loop.py

Drawn shapes, 100 steps, half a minute on two cores. The loss beside it pulls the embeddings of two crops of an image together.
"""

import jax
import optax

import jclip
from jclip.config import Augment, Model, TextTower, VisionTower
from jclip.data import train_transform
from jclip.losses import contrastive


def main(steps: int = 100, batch_size: int = 64) -> float:
    """Trains, and returns the last loss; that of guessing would be log(batch_size)."""
    image = VisionTower(image_size=32, patch_size=8, width=64, depth=2, heads=2)
    text = TextTower(context_length=16, width=64, depth=2, heads=2)
    model = jclip.create_model(Model({"image": image, "text": text}, embed_dim=64))
    towers = model.config.towers
    crops = train_transform(towers["image"], Augment(scale=(0.5, 1.0)))
    transforms = {"image": crops, "image@2": crops, "text": train_transform(towers["text"], Augment())}
    params = jax.jit(model.init)(jax.random.key(0))
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps), weight_decay=0.1)

    def loss_fn(params: jclip.Params, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        encoded = model.apply(params, {"image": batch["image"], "text": batch["text"]}, train=True, key=key)
        other = model.encode_image(params, batch["image@2"])
        pairs = contrastive(encoded["image"].z, encoded["text"].z, model.logit_scale(params))
        return pairs + 0.1 * ((encoded["image"].z - other) ** 2).sum(axis=1).mean()

    @jax.jit
    def train_step(
        params: jclip.Params, state: optax.OptState, batch: dict[str, jax.Array], step: int
    ) -> tuple[jclip.Params, optax.OptState, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch, jax.random.fold_in(jax.random.key(1), step))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, fields = optimizer.init(params), {"image@2": "image"}
    with jclip.make_loader("shapes:train?size=32", transforms, batch_size=batch_size, fields=fields) as loader:
        for step in range(steps):
            params, state, loss = train_step(params, state, next(loader).arrays, step)
            if step % 10 == 0:
                print(f"step {step:3d}  loss {loss:.3f}")
    return float(loss)


if __name__ == "__main__":
    main()
