"""The one check: every contradiction of a configuration is found before anything is allocated."""

import re
from collections.abc import Iterator, Mapping

from jclip.config.check_evals import eval_problems
from jclip.config.durations import to_steps
from jclip.config.errors import ConfigError
from jclip.config.evals import Eval
from jclip.config.schema import Config, InitFrom
from jclip.config.towers import Model, Preprocess, ResNetTower, TextTower, Tokenizer, Tower, VisionTower


def check(config: Config, *, devices: int | None = None, hosts: int = 1) -> None:
    """Raises ConfigError on the first contradiction.

    Args:
        config: what is to be run.
        devices: how many devices will run it; None leaves out what depends on that.
        hosts: how many processes will run it.
    """
    for problem in _problems(config, devices, hosts):
        raise ConfigError(f"config: {problem}")


def check_model(model: Model) -> None:
    """Raises ConfigError on the first contradiction of a model that no run trains."""
    for problem in _model_problems(model):
        raise ConfigError(f"config: {problem}")


def check_evals(model: Model, evals: Mapping[str, Eval]) -> None:
    """Raises ConfigError on the first contradiction of evaluations of a model."""
    for problem in eval_problems(model, evals):
        raise ConfigError(f"config: {problem}")


def _problems(config: Config, devices: int | None, hosts: int) -> Iterator[str]:
    yield from _model_problems(config.model)
    yield from _data_problems(config)
    yield from _optim_problems(config)
    yield from _init_problems(config.init_from)
    yield from _rule_problems(config)
    yield from _objective_problems(config)
    yield from eval_problems(config.model, config.evals)
    best = config.checkpoint.best
    if best is not None and not any(best.startswith(f"{name}/") for name in config.evals):
        yield f"checkpoint.best {best!r} is no metric of an evaluation; it starts with one of {', '.join(config.evals) or 'none'}"
    yield from _size_problems(config, devices, hosts)
    for name, duration in _durations(config):
        try:
            steps = to_steps(duration, steps_per_epoch=1e9, total=None if name == "duration" else 10**9)
            if steps == 0 and name != "optim.warmup":
                yield f'{name} "{duration}" is no step; use "1" or more'
        except ConfigError as error:
            yield f"{name}: {str(error).removeprefix('config: ')}"


def _rule_problems(config: Config) -> Iterator[str]:
    rules: dict[str, tuple[tuple[str, object], ...]] = {
        "optim.weight_decay_rules": config.optim.weight_decay_rules,
        "optim.lr_rules": config.optim.lr_rules,
        "init_from.rules": config.init_from.rules,
        "mesh.rules": config.mesh.rules,
    }
    for at in rules:
        for pattern, _ in rules[at]:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{at}: {pattern!r} is no regular expression: {error}"


def _durations(config: Config) -> Iterator[tuple[str, str]]:
    yield "duration", config.duration
    yield "optim.warmup", config.optim.warmup
    yield "checkpoint.every", config.checkpoint.every
    for name, evaluation in config.evals.items():
        yield f"evals.{name}.every", evaluation.every


def _model_problems(model: Model) -> Iterator[str]:
    for name, tower in model.towers.items():
        at = f"model.towers.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("key", "problem"):
            yield f"{at}: {name!r} cannot name a tower; use lower-case letters, other than key and problem"
        for field in ("width", "depth", "heads"):
            if getattr(tower, field, 1) < 1:
                yield f"{at}.{field} {getattr(tower, field)} must be at least 1"
        if tower.width % tower.heads:
            divisors = [h for h in range(1, tower.width + 1) if tower.width % h == 0]
            near = sorted(divisors, key=lambda h: abs(h - tower.heads))[:2]
            yield f"{at}.heads {tower.heads} does not divide width {tower.width}; use {' or '.join(map(str, sorted(near)))}"
        if tower.projection == "none" and tower.width != model.embed_dim:
            yield f"{at}.projection 'none' needs width {tower.width} to be embed_dim {model.embed_dim}; use 'linear'"
        yield from _tower_problems(at, tower)
    if model.embed_dim < 1:
        yield f"model.embed_dim {model.embed_dim} must be at least 1"


def _tower_problems(at: str, tower: Tower) -> Iterator[str]:
    if isinstance(tower, ResNetTower):
        yield from _resnet_problems(at, tower)
        return
    if not 0 <= tower.dropout < 1:
        yield f"{at}.dropout {tower.dropout} is a probability; use 0 or more and less than 1"
    if tower.mlp_ratio <= 0 or tower.norm_eps <= 0:
        yield f"{at}: mlp_ratio {tower.mlp_ratio} and norm_eps {tower.norm_eps} must be positive"
    yield from _vision_problems(at, tower) if isinstance(tower, VisionTower) else _text_problems(at, tower)


def _resnet_problems(at: str, tower: ResNetTower) -> Iterator[str]:
    if tower.image_size < 32 or tower.image_size % 32:
        low = max(1, tower.image_size // 32) * 32
        yield f"{at}.image_size {tower.image_size} is not divisible by 32; use {low} or {low + 32}"
    if tower.stem_width < 2 or tower.stem_width % 2 or min(tower.layers) < 1:
        yield f"{at}: stem_width {tower.stem_width} must be even, and each of layers {tower.layers} at least 1"
    yield from _preprocess_problems(f"{at}.preprocess", tower.preprocess)


def _vision_problems(at: str, tower: VisionTower) -> Iterator[str]:
    fits = tower.image_size >= tower.patch_size >= 1 and (tower.crop or tower.image_size % tower.patch_size == 0)
    if not fits:
        low = max(1, tower.image_size // max(1, tower.patch_size)) * tower.patch_size
        yield (
            f"{at}.image_size {tower.image_size} is not divisible by patch_size {tower.patch_size}; "
            f"use {low} or {low + tower.patch_size}"
        )
    if fits and tower.stem:
        yield from _stem_problems(at, tower)
    if not 0 <= tower.patch_dropout < 1:
        yield f"{at}.patch_dropout {tower.patch_dropout} is a fraction of the patches; use 0 or more and less than 1"
    if tower.positions == "sincos" and tower.width % 4:
        yield f"{at}.width {tower.width} is not divisible by 4, which positions='sincos' needs"
    yield from _preprocess_problems(f"{at}.preprocess", tower.preprocess)


def _stem_problems(at: str, tower: VisionTower) -> Iterator[str]:
    if min(tower.stem) < 1:
        yield f"{at}.stem {tower.stem}: each convolution needs at least 1 channel"
    if tower.patch_size % 2 ** len(tower.stem):
        halvings = (tower.patch_size & -tower.patch_size).bit_length() - 1
        yield f"{at}.stem {tower.stem}: patch_size {tower.patch_size} can be halved {halvings} times; use so many at most"
    if rest := tower.image_size % tower.patch_size:
        low = tower.image_size - rest
        yield (
            f"{at}.stem sees all pixels, and crop leaves some of image_size {tower.image_size} out; "
            f"use {low} or {low + tower.patch_size}"
        )


def _preprocess_problems(at: str, preprocess: Preprocess) -> Iterator[str]:
    if min(preprocess.std) <= 0:
        yield f"{at}.std {preprocess.std} must be positive"
    if not 0 <= preprocess.fill <= 255:
        yield f"{at}.fill {preprocess.fill} is not a grey value of 0 to 255"


def _text_problems(at: str, tower: TextTower) -> Iterator[str]:
    if tower.context_length < 2:
        yield f"{at}.context_length {tower.context_length} has no room for the start and end of text; use at least 2"
    if tower.tokenizer.kind == "clip" and tower.vocab_size != 49408:
        yield f"{at}.vocab_size {tower.vocab_size} is not that of the clip tokenizer; use 49408"
    if tower.tokenizer.kind == "clip" and tower.eot_id not in (None, 49407):
        yield f"{at}.eot_id {tower.eot_id} is not the end of text of the clip tokenizer; use 49407, or None"
    yield from _tokenizer_problems(f"{at}.tokenizer", tower.tokenizer, tower.vocab_size)
    if tower.causal and tower.pool == "first":
        yield f"{at}: pool='first' of a causal tower sees the first token alone; use pool='eot' or causal=False"


def _tokenizer_problems(at: str, tokenizer: Tokenizer, vocab_size: int) -> Iterator[str]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_id", "eos_id", "last_id", "strip_id", "pad_id")}
    given = [name for name in ("bos_id", "eos_id", "last_id", "strip_id") if ids[name] is not None]
    if tokenizer.kind == "clip" and (tokenizer.file or given or tokenizer.pad_id):
        what = ", ".join([*(["file"] if tokenizer.file else []), *given, *(["pad_id"] if tokenizer.pad_id else [])])
        yield f"{at}: kind 'clip' brings its own vocabulary and ids; leave out {what}, or use kind 'hugging_face'"
    if tokenizer.kind != "clip" and not tokenizer.file:
        yield f"{at}.file is empty; kind {tokenizer.kind!r} needs the path of a vocabulary"
    if tokenizer.kind == "clip" and tokenizer.clean not in ("lower", "canonicalize"):
        yield f"{at}.clean {tokenizer.clean!r}: kind 'clip' knows lower case only; use 'lower' or 'canonicalize'"
    owner = {"siglip": "sentencepiece", "siglip2": "hugging_face"}.get(tokenizer.clean, tokenizer.kind)
    if tokenizer.kind not in ("clip", owner):
        yield f"{at}.clean {tokenizer.clean!r} is for kind {owner!r}; with {tokenizer.kind!r} use 'none' to 'canonicalize'"
    if tokenizer.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", tokenizer.sha256):
        yield f"{at}.sha256 {tokenizer.sha256!r} is not 64 hexadecimal digits; take those of `sha256sum`"
    for name, value in ids.items():
        if value is not None and not 0 <= value < vocab_size:
            yield f"{at}.{name} {value} is no id of a vocabulary of {vocab_size}"


def _data_problems(config: Config) -> Iterator[str]:
    augment = config.data.augment
    if not 0 < augment.scale[0] <= augment.scale[1] <= 1:
        yield f"data.augment.scale {augment.scale} is not a range within (0, 1]"
    if not 0 < augment.ratio[0] <= augment.ratio[1]:
        yield f"data.augment.ratio {augment.ratio} is not a range of positive ratios"
    if not 0 <= augment.flip <= 1:
        yield f"data.augment.flip {augment.flip} is not a probability"
    if config.data.workers < 0:
        yield f"data.workers {config.data.workers} must be 0 or more"
    if config.data.max_pixels < 1:
        yield f"data.max_pixels {config.data.max_pixels} must be at least 1"
    for field in config.data.fields:
        if field not in config.model.towers:
            yield f"data.fields: there is no tower {field!r}; towers: {', '.join(config.model.towers)}"


def _optim_problems(config: Config) -> Iterator[str]:
    optim = config.optim
    if optim.lr <= 0:
        yield f"optim.lr {optim.lr} must be positive"
    for name in ("b1", "b2"):
        if not 0 <= getattr(optim, name) < 1:
            yield f"optim.{name} {getattr(optim, name)} must be at least 0 and less than 1"
    if not 0 <= optim.final_lr <= 1:
        yield f"optim.final_lr {optim.final_lr} is a fraction of the peak; use 0 to 1"
    if optim.weight_decay < 0:
        yield f"optim.weight_decay {optim.weight_decay} must be 0 or more"
    if optim.clip_norm is not None and optim.clip_norm <= 0:
        yield f"optim.clip_norm {optim.clip_norm} must be positive, or None"
    for pattern, factor in optim.lr_rules:
        if factor < 0:
            yield f"optim.lr_rules: the factor {factor} of {pattern!r} must be 0 (frozen) or more"
    for name, factor in optim.layer_decay.items():
        if name not in config.model.towers:
            yield f"optim.layer_decay: there is no tower {name!r}; towers: {', '.join(config.model.towers)}"
        elif isinstance(config.model.towers[name], ResNetTower):
            yield f"optim.layer_decay: tower {name!r} is a ResNet, whose blocks are not stacked; use optim.lr_rules"
        if not 0 < factor <= 1:
            yield f"optim.layer_decay of {name!r} is {factor}; use more than 0, at most 1 (to freeze use optim.lr_rules)"


def _init_problems(init: InitFrom) -> Iterator[str]:
    if not init.path and init != InitFrom(rules=init.rules):
        yield "init_from.step, architecture and tokenizer say which weights, but init_from.path is empty; give the path"
    if init.step is not None and init.architecture is not None:
        yield "init_from.step is of a workdir, which says its architecture itself; leave out init_from.architecture"
    if init.path and all(what == "scratch" for _, what in init.rules):
        yield f"init_from.rules load nothing of {init.path}; leave out the path, or let a rule say 'load'"


def _objective_problems(config: Config) -> Iterator[str]:
    if len(config.model.towers) < 2:
        yield f"model.towers has {len(config.model.towers)} tower; a contrastive model needs at least 2"
    if not config.pairs:
        yield "pairs is empty: there is nothing to learn; use (Pair(a='image', b='text'),)"
    for i, pair in enumerate(config.pairs):
        for tower in (pair.a, pair.b):
            if tower not in config.model.towers:
                yield f"pairs[{i}]: there is no tower {tower!r}; towers: {', '.join(config.model.towers)}"
        if pair.a == pair.b:
            yield f"pairs[{i}]: both sides are {pair.a!r}"
        if pair.block < 1:
            yield f"pairs[{i}].block {pair.block} must be at least 1"
        if pair.logit_scale is not None and not 1 <= pair.logit_scale <= 100:
            yield f"pairs[{i}].logit_scale {pair.logit_scale} is outside 1 to 100, where training keeps it"
        if pair.logit_bias is not None and pair.loss == "softmax":
            yield f"pairs[{i}].logit_bias {pair.logit_bias}: a softmax does not depend on a bias; leave it None"
        if pair.logit_bias == "batch" and config.batch_size < 2:
            yield f"pairs[{i}].logit_bias 'batch' needs a batch_size of at least 2"
        if not 0 <= pair.label_smoothing < 1:
            yield f"pairs[{i}].label_smoothing {pair.label_smoothing} is a share; use 0 or more and less than 1"
        if pair.equal_by is not None and pair.equal == "negative":
            yield f"pairs[{i}].equal_by {pair.equal_by!r} has no effect with equal='negative'; use 'ignore' or 'positive'"
        if pair.equal_by is not None and pair.equal_by not in config.model.towers:
            yield f"pairs[{i}].equal_by: there is no tower {pair.equal_by!r}; towers: {', '.join(config.model.towers)}"
        taken = {*config.model.towers, *(f"{tower}_projection" for tower in config.model.towers)}
        if pair.name in taken | {other.name for other in config.pairs[:i]}:
            yield f"pairs[{i}]: the name {pair.name!r} is taken, by a tower, its projection or another pair; rename a tower"
    unused = set(config.model.towers) - {tower for pair in config.pairs for tower in (pair.a, pair.b)}
    if unused:
        yield f"pairs: no pair trains the tower {', '.join(sorted(unused))}"


def _size_problems(config: Config, devices: int | None, hosts: int) -> Iterator[str]:
    for name in ("batch_size", "eval_batch_size", "log_every", "accumulate"):
        if getattr(config, name) < 1:
            yield f"{name} {getattr(config, name)} must be at least 1"
    if config.checkpoint.keep < 1:
        yield f"checkpoint.keep {config.checkpoint.keep} must be at least 1"
    mesh = config.mesh
    if mesh.fsdp < 1 or mesh.data == 0 or mesh.data < -1:
        yield f"mesh {mesh.data} x {mesh.fsdp}: sizes must be at least 1 (data may be -1: all that remain)"
    if devices is None:
        return
    if mesh.data == -1 and devices % mesh.fsdp:
        yield f"mesh.fsdp {mesh.fsdp} does not divide {devices} devices"
    if mesh.data > 0 and mesh.data * mesh.fsdp != devices:
        yield f"mesh {mesh.data} x {mesh.fsdp} needs {mesh.data * mesh.fsdp} devices; there are {devices}"
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config, name)
        if size % devices:
            low = size // devices * devices
            choices = f"{low} or {low + devices}" if low else str(devices)
            yield f"{name} {size} is not divisible by {devices} devices; use {choices}"
    parts = devices * config.accumulate
    if config.accumulate > 1 and config.batch_size % parts:
        low = max(1, config.batch_size // parts) * parts
        what = f"{devices} devices x accumulate {config.accumulate}"
        yield f"batch_size {config.batch_size} is not divisible by {what}; use {low} or {low + parts}"
