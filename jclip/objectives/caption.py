"""The caption objective: each token of a text, predicted from those before it and from the image (CoCa)."""

import zlib
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from jclip import config, losses
from jclip.models import Compute, caption_decoder, decoder_flops, in_groups, output_tokens, tower_flops
from jclip.objectives.objective import Metrics, Objective, Params, Part, Setting
from jclip.sharding import BATCH_AXES, make_gather


class CaptionObjective(Objective):
    """See `config.Caption`."""

    def __init__(self, name: str, how: config.Caption, setting: Setting, mesh: Mesh | None) -> None:
        self.name, self.how, self.setting, self.mesh = name, how, setting, mesh
        self.towers = setting.captioners[name]
        self.compute = Compute.of(setting.model, mesh)._replace(scan=setting.model.scan, remat=setting.model.remat)
        self.decoder = caption_decoder(self.towers, setting.model, self.compute)

    def init(self, key: Array, part: Part) -> Params:
        """The decoder."""
        text, images = (part.encoded[view].output.tokens for view in (self.how.text, self.how.image))
        return {"decoder": self.decoder.init(key, text, images)["params"]}

    def rows(self, params: Params, extra: Params, part: Part) -> tuple[Any, Metrics]:
        """The cross-entropy of each caption, and the share of its tokens that were predicted right.

        The token at a position is predicted from the features of the one before it; padding neither predicts nor is predicted.
        """
        how, text = self.how, part.encoded[self.how.text].output
        key = jax.random.fold_in(part.key, zlib.crc32(self.name.encode()))  # other numbers than those of a tower's dropout
        features, vocabulary = self._gathering(params).apply(
            {"params": params["decoder"]},
            text.tokens[:, :-1],
            part.encoded[how.image].output.tokens,
            rows=part.rows,
            rngs={"dropout": key},
        )
        loss, right = losses.word_cross_entropy(
            features,
            vocabulary,
            part.batch[how.text][:, 1:],
            text.mask[:, 1:],
            label_smoothing=how.label_smoothing,
            block=how.block,
            mesh=self.mesh,
            axes=BATCH_AXES,
        )
        return {}, {"loss": loss.sum(), "accuracy": right.sum()}

    def _gathering(self, params: Params) -> Any:
        """The decoder, its blocks made whole one by one where they are sharded."""
        gather = None if self.mesh is None else make_gather({self.name: params}, self.setting.placement, self.mesh)
        if gather is None:
            return self.decoder
        blocks = partial(gather, f"{self.name}/decoder/blocks")
        return caption_decoder(self.towers, self.setting.model, self.compute._replace(gather=blocks))

    def flops(self) -> int:
        """The decoder forward and backward; and of the towers, the tokens that nobody else asks for."""
        model = self.setting.model
        image, text = model.towers[self.towers.image], model.towers[self.towers.text]
        forward = decoder_flops(self.decoder.config, output_tokens(image), image.pooled_width)
        if not (model.scan or self.setting.placement.fsdp > 1):
            groups = config.groups_of(self.setting.buckets).get(self.towers.text, ())
            seen = [(image, 1.0), *in_groups(text, groups)]
            forward += round(sum(share * (tower_flops(tower) - tower_flops(tower, tokens=False)) for tower, share in seen))
        return 3 * self.setting.batch_size * forward
