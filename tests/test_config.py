"""The config room: JSON there and back, every contradiction found, recipes loaded with overrides."""

import ast
import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jclip import config as room
from jclip.config import (
    Adapt,
    Augment,
    Checkpoint,
    Choice,
    Config,
    ConfigError,
    Contrastive,
    Data,
    FewShot,
    InitFrom,
    Labels,
    LinearProbe,
    MeshConfig,
    Model,
    NearestNeighbours,
    Optim,
    Preprocess,
    ResNetTower,
    Retrieval,
    Robustness,
    SpectrogramTower,
    TextTower,
    TokenizerConfig,
    View,
    VisionTower,
    Vocabulary,
    ZeroShot,
    architecture,
    architecture_names,
    check,
    check_adapt,
    check_filter,
    check_suite,
    differences,
    from_json,
    load,
    load_adapt,
    load_filter,
    load_suite,
    make_plan,
    to_json,
    to_steps,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
SUITES = [path for path in CONFIGS if path.name.startswith("suite_")]
FILTERS = [path for path in CONFIGS if path.name.startswith("filter_")]
ADAPTATIONS = [path for path in CONFIGS if path.name.startswith("adapt_")]
RECIPES = [path for path in CONFIGS if path not in SUITES + FILTERS + ADAPTATIONS]
FULL = Config(
    model=architecture("ViT-tiny-test"),
    data=Data(source="webdataset:x.tar", fields={"text": "json.title"}, augment=Augment(flip=0.5), workers=2),
    optim=Optim(
        clip_norm=1.0, weight_decay_rules=((".*", 1.0),), lr_rules=(("image/.*", 0.0), (".*", 1.0)), layer_decay={"text": 0.5}
    ),
    init_from=InitFrom("runs/x", step=3, rules=(("image/.*", "load"), (".*", "scratch"))),
    objectives={
        "image_text": Contrastive(weight=2.0),
        "text_image": Contrastive(a="text", b="image", loss="sigmoid", logit_bias="batch", block=4),
    },
    mesh=MeshConfig(data=2, fsdp=4),
    checkpoint=Checkpoint(best="zero/top1"),
    evals={
        "zero": ZeroShot("shapes:test", Labels(classes=("a", "b")), fields={"image": "png"}),
        "pairs/of": Retrieval("shapes:val", every="1ep"),
        "probe": LinearProbe("shapes:train", "shapes:test", l2=0.1),
    },
    duration="20k",
)


@pytest.mark.parametrize("name", architecture_names())
def test_an_architecture_survives_json_and_the_check(name):
    model = architecture(name)
    assert from_json(json.loads(json.dumps(to_json(model))), Model) == model
    if model.towers["text"].tokenizer.kind != "clip":
        with pytest.raises(ConfigError, match=r"tokenizer.file is empty; kind .* needs the path of a vocabulary"):
            check(Config(model=model), devices=8)
        model = room.replace(model, "towers.text.tokenizer.file", "/a/vocabulary")
    check(Config(model=model), devices=8)


def test_a_config_with_everything_survives_json_and_the_check():
    assert from_json(json.loads(json.dumps(to_json(FULL)))) == FULL
    check(FULL, devices=8)


def test_a_side_stays_a_number_and_height_and_width_a_pair():
    for size, saved in ((64, 64), ((96, 64), [96, 64])):
        config = image(image_size=size)
        data = json.loads(json.dumps(to_json(config)))
        assert data["model"]["towers"]["image"]["image_size"] == saved
        again = from_json(data)
        assert again == config
        assert again.model.towers["image"].image_size == size


def test_height_and_width_are_given_on_the_command_line():
    recipe = str(Path(__file__).parent / "recipe_tiny.py")
    for given, size in ((["96", "64"], (96, 64)), (["64"], 64)):
        config = load(recipe, ["--model.towers.image.image-size", *given, "--optim.lr", "0.5"])
        assert (config.model.towers["image"].image_size, config.optim.lr) == (size, 0.5)


def test_an_unknown_architecture_is_answered_with_the_names():
    with pytest.raises(ConfigError, match=r"'ViT-B16'; known: .*ViT-B-16"):
        architecture("ViT-B16")


def at(data, *path):
    for key in path:
        data = data[key]
    return data


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        ((), "batchsize", 3, r"^config: unknown key 'batchsize'; did you mean 'batch_size'\? allowed: model, data"),
        (("optim",), "xyzzy", 3, r"^config\.optim: unknown key 'xyzzy'; allowed: lr, warmup"),
        (("evals", "probe"), "L2", 3, r"^config\.evals\.probe: unknown key 'L2'"),
        (("model", "towers", "image"), "width", "768", r"^config\.model\.towers\.image\.width: '768' is not a int"),
        (("model", "towers", "image"), "width", 768.0, r"^config\.model\.towers\.image\.width: 768\.0 is not a int"),
        (
            ("model", "towers", "image"),
            "type",
            "Vision",
            r"image: type 'Vision' is unknown; use one of VisionTower, ResNetTower, TextTower",
        ),
        (("model", "towers", "image", "preprocess"), "mean", [0, 1], r"preprocess\.mean: 2 values where 3 belong"),
        (("model",), "dtype", "f32", r"^config\.model\.dtype: 'f32' is not allowed; use one of 'float32', 'bfloat16'"),
        (("model",), "scan", 1, r"^config\.model\.scan: 1 is not a bool"),
        (("model",), "type", "Data", r"^config\.model: type 'Data' is unknown; use Model"),
        (("optim",), "lr", True, r"^config\.optim\.lr: True is not a float"),
        (("optim",), "lr", None, r"^config\.optim\.lr: None is not a float"),
        (("optim",), "clip_norm", "1", r"^config\.optim\.clip_norm: '1' is not a float"),
        (("data", "fields"), "text", 3, r"^config\.data\.fields\.text: 3 is not a str"),
        (
            ("objectives", "text_image"),
            "loss",
            "triplet",
            r"^config\.objectives\.text_image\.loss: 'triplet' is not allowed; use one of 'softmax'",
        ),
        (
            ("objectives", "text_image"),
            "logit_bias",
            "x",
            r"logit_bias: 'x' is not a float; 'x' is not allowed; use",
        ),
        ((), "mesh", [8, 1], r"^config\.mesh: \[8, 1\] is not a Mesh"),
    ],
)
def test_wrong_json_is_refused_with_its_path(path, key, value, message):
    data = json.loads(json.dumps(to_json(FULL)))
    at(data, *path)[key] = value
    with pytest.raises(ConfigError, match=message):
        from_json(data)


def test_missing_json_is_refused_because_defaults_may_have_changed_since():
    data = to_json(FULL)
    del data["optim"]["eps"]
    with pytest.raises(ConfigError, match=r"^config\.optim: missing eps"):
        from_json(data)


def image(**changes):
    return Config(model=Model(towers={"image": VisionTower(**changes), "text": TextTower()}))


def text(**changes):
    return Config(model=Model(towers={"image": VisionTower(), "text": TextTower(**changes)}))


def evals(evaluation):
    return Config(evals={"e": evaluation})


AUDIO = {"image": VisionTower(), "text": TextTower(), "audio": TextTower()}
CONTRADICTIONS = [
    (
        Config(model=Model(towers={"Image": VisionTower(), "text": TextTower()})),
        r"model\.towers\.Image: .* use lower-case letters",
    ),
    (
        Config(model=Model(towers={"key": VisionTower(), "text": TextTower()})),
        r"model\.towers\.key: .* other than key and problem",
    ),
    (Config(model=Model(towers={"text": TextTower()})), r"objectives\.image_text: there is no view 'image'; views: text"),
    (Config(model=Model(embed_dim=0)), r"model\.embed_dim 0 must be at least 1"),
    (
        Config(objectives={"image_text": Contrastive(logit_bias=-10.0)}),
        r"objectives\.image_text\.logit_bias -10\.0: a softmax does not depend on a bias",
    ),
    (
        Config(objectives={"image_text": Contrastive(loss="sigmoid", logit_bias="batch")}, batch_size=1),
        r"batch_size 1 must be at least 2",
    ),
    (
        Config(objectives={"image_text": Contrastive(label_smoothing=1.0)}),
        r"objectives\.image_text\.label_smoothing 1\.0 must be at least 0 and below 1",
    ),
    (
        Config(objectives={"image_text": Contrastive(equal_by="text")}),
        r"objectives\.image_text\.equal_by 'text' has no effect with equal='negative'",
    ),
    (
        Config(objectives={"image_text": Contrastive(equal="ignore", equal_by="x")}),
        r"objectives\.image_text: there is no view 'x'; views: image, text",
    ),
    (Config(objectives={"image": Contrastive()}), r"objectives\.image: the name is that of a tower or of its projection"),
    (Config(objectives={"Image": Contrastive()}), r"objectives\.Image: 'Image' cannot name an objective; use lower-case"),
    (Config(views={"image@2": View("image")}), r"views: no objective reads image@2"),
    (Config(views={"image2": View("image")}), r"views\.image2: 'image2' cannot name a view; .* such as image@2"),
    (Config(views={"a@2": View("a")}), r"views\.a@2\.tower: there is no tower 'a'; towers: image, text"),
    (
        Config(views={"text@2": View("text", augment=Augment())}),
        r"text@2\.augment: text is a text tower; use text_augment",
    ),
    (Config(objectives={"x": Vocabulary()}), r"objectives: none trains the tower text"),
    (Config(evaluate_ema=True), r"evaluate_ema: there is no moving average; give optim\.ema a decay"),
    (
        Config(
            model=Model(towers={"image": VisionTower(), "projection": TextTower()}),
            objectives={"image_projection": Contrastive("image", "projection")},
        ),
        r"objectives\.image_projection: the name is that of a tower or of its projection",
    ),
    (text(mlp_ratio=0.0009), r"text\.mlp_ratio 0\.0009 of width 512 leaves the MLP no hidden unit"),
    (
        text(tokenizer=TokenizerConfig("hugging_face", "x", eos_id=49408)),
        r"tokenizer\.eos_id 49408 is no id of a vocabulary of 49408",
    ),
    (image(dropout=1.0), r"model\.towers\.image\.dropout 1\.0 must be at least 0 and below 1"),
    (Config(accumulate=0), r"accumulate 0 must be at least 1"),
    (Config(log_every=2**31), r"log_every 2147483648 must be at least 1 and at most 2,147,483,647"),
    (Config(optim=Optim(lr=1e-60)), r"optim\.lr 1e-60 must be above 0 and at most 100 in float32"),
    (
        Config(objectives={"image_text": Contrastive(logit_scale=0.5)}),
        r"objectives\.image_text\.logit_scale 0\.5 must be a number at least 1 and at most 100 or None",
    ),
    (image(width=0), r"model\.towers\.image\.width 0 must be at least 1"),
    (image(depth=0), r"model\.towers\.image\.depth 0 must be at least 1"),
    (text(heads=0), r"model\.towers\.text\.heads 0 must be at least 1"),
    (image(width=768, heads=11), r"model\.towers\.image\.heads 11 does not divide width 768; use 8 or 12"),
    (text(mlp_ratio=0.0), r"model\.towers\.text\.mlp_ratio 0\.0 must be above 0"),
    (image(norm_eps=0.0), r"model\.towers\.image\.norm_eps 0\.0 must be above 0 and at most 1"),
    (image(image_size=225), r"image\.image_size 225 is not divisible by patch_size 16; use 224 or 240"),
    (image(patch_size=0), r"image\.patch_size 0 must be at least 1 and at most 1,048,576"),
    (image(stem=(8, 0)), r"image\.stem\[1\] 0 must be at least 1"),
    (image(stem=(8, 8, 8), patch_size=4), r"image\.stem \(8, 8, 8\): patch_size 4 can be halved 2 times; use so many"),
    (image(stem=(8,), image_size=225, crop=True), r"image\.stem .* image_size 225 out; use 224 or 240"),
    (image(stem=(8,), patch_size=0), r"image\.patch_size 0 must be at least 1"),
    (image(image_size=8), r"image\.image_size 8 is not divisible by patch_size 16; use 16 or 32"),
    (image(image_size=(64, 64)), r"model\.towers\.image\.image_size \(64, 64\) is a square; use 64"),
    (image(image_size=(64, 36)), r"image\.image_size \(64, 36\): width 36 is not divisible by patch_size 16; use 32 or 48"),
    (image(image_size=(8, 64)), r"image\.image_size \(8, 64\): height 8 is not divisible by patch_size 16; use 16 or 32"),
    (image(image_size=(0, 64)), r"image\.image_size\[0\] 0 must be at least 1"),
    (image(image_size=(64, 32, 3)), r"image\.image_size \(64, 32, 3\) must be .* or 2 values"),
    (image(image_size="64x32"), r"image\.image_size '64x32' must be a whole number .* or 2 values"),
    (image(image_size=(64, 41), stem=(8,), crop=True), r"image\.stem .* image_size \(64, 41\): width 41 out; use 32 or 48"),
    (image(image_size=(4096, 16), patch_size=1), None),
    (image(image_size=(4096, 512), patch_size=1), r"image_size \(4096, 512\) in patches of 1 is 2,097,152 tokens; 1,048,576 at"),
    (image(patch_dropout=1.0), r"image\.patch_dropout 1\.0 must be at least 0 and below 1"),
    (image(width=6, heads=1, positions="sincos"), r"image\.width 6 is not divisible by 4"),
    (image(preprocess=Preprocess(std=(1.0, 0.0, 1.0))), r"image\.preprocess\.std\[1\] 0\.0 must be at least 0\.001"),
    (image(preprocess=Preprocess(fill=256)), r"image\.preprocess\.fill 256 must be at least 0 and at most 255"),
    (text(context_length=1), r"text\.context_length 1 must be at least 2"),
    (text(vocab_size=50000), r"text\.vocab_size 50000 .* use 49408"),
    (
        text(tokenizer=TokenizerConfig(file="x", pad_id=1)),
        r"text\.tokenizer: kind 'clip' brings its own .* leave out file, pad_id",
    ),
    (
        text(tokenizer=TokenizerConfig(last_id=1, strip_id=2)),
        r"text\.tokenizer: kind 'clip' brings its own .* leave out last_id, strip_id",
    ),
    (text(tokenizer=TokenizerConfig("sentencepiece")), r"text\.tokenizer\.file is empty; kind 'sentencepiece' needs the path"),
    (text(tokenizer=TokenizerConfig(clean="whitespace")), r"tokenizer\.clean 'whitespace': .* use 'lower' or 'canonicalize'"),
    (
        text(tokenizer=TokenizerConfig("hugging_face", "x", clean="siglip")),
        r"tokenizer\.clean 'siglip' is for kind 'sentencepiece'",
    ),
    (
        text(tokenizer=TokenizerConfig("sentencepiece", "x", clean="siglip2")),
        r"tokenizer\.clean 'siglip2' is for kind 'hugging_face'",
    ),
    (text(tokenizer=TokenizerConfig("hugging_face", "x", "abc")), r"tokenizer\.sha256 'abc' is not 64 hexadecimal digits"),
    (
        text(tokenizer=TokenizerConfig("hugging_face", "x", strip_id=49408)),
        r"tokenizer\.strip_id 49408 is no id of a vocabulary of 49408",
    ),
    (text(tokenizer=TokenizerConfig("hugging_face", "x", pad_id=-1)), r"tokenizer\.pad_id -1 must be at least 0"),
    (text(pool="first"), r"model\.towers\.text: pool='first' .* use pool='eot' or causal=False"),
    (Config(data=Data(augment=Augment(scale=(0.9, 0.5)))), r"data\.augment\.scale \(0\.9, 0\.5\) is no range"),
    (Config(data=Data(augment=Augment(scale=(0.5, 1.5)))), r"data\.augment\.scale\[1\] 1\.5 must be above 0 and at most 1"),
    (Config(data=Data(augment=Augment(ratio=(0.0, 1.0)))), r"data\.augment\.ratio\[0\] 0\.0 must be at least 0\.01"),
    (Config(data=Data(augment=Augment(flip=2.0))), r"data\.augment\.flip 2\.0 must be at least 0 and at most 1"),
    (Config(data=Data(workers=-1)), r"data\.workers -1 must be at least 0"),
    (Config(data=Data(fields={"txt": "json.title"})), r"data\.fields: there is no tower 'txt'; towers: image, text"),
    (Config(optim=Optim(lr=0.0)), r"optim\.lr 0\.0 must be above 0"),
    (Config(optim=Optim(b1=1.0)), r"optim\.b1 1\.0 must be at least 0 and at most 0\.99999"),
    (Config(optim=Optim(b2=-0.1)), r"optim\.b2 -0\.1 must be at least 0 and at most 0\.99999"),
    (Config(optim=Optim(final_lr=1.5)), r"optim\.final_lr 1\.5 must be at least 0 and at most 1"),
    (Config(optim=Optim(clip_norm=0.0)), r"optim\.clip_norm 0\.0 must be a number above 0 or None"),
    (Config(optim=Optim(lr_rules=(("(", 0.0), (".*", 1.0)))), r"optim\.lr_rules: '\(' is no regular expression"),
    (Config(optim=Optim(lr_rules=((".*", -1.0),))), r"optim\.lr_rules\[0\]\[1\] -1\.0 must be at least 0"),
    (Config(optim=Optim(layer_decay={"img": 0.5})), r"optim\.layer_decay: there is no tower 'img'; towers: image, text"),
    (Config(optim=Optim(layer_decay={"image": 0.0})), r"optim\.layer_decay\.image 0\.0 must be above 0 and at most 1"),
    (Config(optim=Optim(layer_decay={"text": 1.5})), r"optim\.layer_decay\.text 1\.5 must be above 0 and at most 1"),
    (
        Config(model=Model({"image": ResNetTower(), "text": TextTower()}), optim=Optim(layer_decay={"image": 0.5})),
        r"optim\.layer_decay: tower 'image' is a ResNetTower, .* use optim\.lr_rules",
    ),
    (Config(init_from=InitFrom("x", rules=((")", "load"),))), r"init_from\.rules: '\)' is no regular expression"),
    (Config(init_from=InitFrom("x", rules=((".*", "scratch"),))), r"init_from\.rules load nothing of x; leave out the path"),
    (Config(init_from=InitFrom(step=3)), r"init_from\.path is empty; give the path"),
    (Config(init_from=InitFrom("x", step=3, architecture="ViT-B-32")), r"leave out init_from\.architecture"),
    (Config(optim=Optim(warmup="3 %")), r'optim\.warmup: duration "3 %" is not understood; write "5ep"'),
    (Config(objectives={}), r"objectives is empty.* use \{'image_text': Contrastive"),
    (
        Config(objectives={"audio_text": Contrastive("audio")}),
        r"objectives\.audio_text: there is no view 'audio'; views: ",
    ),
    (Config(objectives={"same": Contrastive("text")}), r"objectives\.same: both sides are 'text'"),
    (Config(objectives={"image_text": Contrastive(block=0)}), r"objectives\.image_text\.block 0 must be at least 1"),
    (Config(model=Model(towers=AUDIO)), r"objectives: none trains the tower audio"),
    (evals(ZeroShot("s", image="depth")), r"evals\.e: there is no tower 'depth'; towers: image, text"),
    (evals(ZeroShot("s", text="depth")), r"evals\.e: there is no tower 'depth'; towers: image, text"),
    (evals(ZeroShot("s", text="image")), r"evals\.e\.text 'image' is not a text tower"),
    (evals(ZeroShot("s", templates=("a photo",))), r"evals\.e\.templates: each needs a \{\} where the class name goes"),
    (evals(ZeroShot("s", Labels(classes=("a", "b"), names=("c",)))), r"evals\.e\.labels\.names has 1 names for 2 classes"),
    (evals(Robustness("t", "s", {})), r"evals\.e\.shifted names no set; give at least one"),
    (evals(FewShot("t", "s", k=(4, 2))), r"evals\.e\.k \(4, 2\) must be rising numbers of examples"),
    (evals(FewShot("t", "s", seeds=0)), r"evals\.e\.seeds 0 must be at least 1"),
    (evals(NearestNeighbours("t", "s", k=0)), r"evals\.e\.k 0 must be at least 1"),
    (evals(NearestNeighbours("t", "s", temperature=0.0)), r"evals\.e\.temperature 0\.0 must be a number at least 0\.001"),
    (evals(LinearProbe("t", "s", "ridge", "v")), r"evals\.e\.validation 'v': protocol ridge searches nothing"),
    (evals(Choice("s", image="text", text="image")), r"evals\.e\.text 'image' is not a text tower"),
    (evals(ZeroShot("s", every="often")), r'evals\.e\.every: duration "often" is not understood'),
    (evals(Retrieval("s", b="depth")), r"evals\.e: there is no tower 'depth'; towers: image, text"),
    (evals(Retrieval("s", b="image")), r"evals\.e: image is there twice, in 'image' and 'image'; use two towers"),
    (evals(Retrieval("s", fields={"txt": "x"})), r"evals\.e: there is no tower 'txt'; towers: image, text"),
    (evals(LinearProbe("s", "s", tower="depth")), r"evals\.e: there is no tower 'depth'; towers: image, text"),
    (evals(LinearProbe("s", "s", l2=-1.0)), r"evals\.e\.l2 -1\.0 must be at least 0"),
    (Config(checkpoint=Checkpoint(best="e/top1")), r"checkpoint\.best 'e/top1' is no metric .* one of none"),
    (Config(checkpoint=Checkpoint(keep=0)), r"checkpoint\.keep 0 must be at least 1"),
    (Config(checkpoint=Checkpoint(every="10")), None),
    (Config(checkpoint=Checkpoint(every="x")), r'checkpoint\.every: duration "x" is not understood'),
    (Config(batch_size=1), r"batch_size 1 must be at least 2"),
    (Config(eval_batch_size=0), r"eval_batch_size 0 must be at least 1"),
    (Config(log_every=0), r"log_every 0 must be at least 1"),
    (Config(duration="50%"), r'duration: the run\'s own duration cannot be a percentage, as in "50%"; use "30ep"'),
    (Config(mesh=MeshConfig(fsdp=0)), r"mesh\.fsdp 0 must be at least 1"),
    (Config(mesh=MeshConfig(data=-2)), r"mesh\.data -2 must be at least -1"),
    (Config(mesh=MeshConfig(data=0)), r"mesh\.data 0 is no device; use 1 or more, or -1"),
    (image(image_size=2048, patch_size=1), r"image\.image_size 2048 in patches of 1 is 4,194,304 tokens; 1,048,576 at most"),
    (image(width=2, heads=1, mlp_ratio=0.1), r"image\.mlp_ratio 0\.1 of width 2 leaves the MLP no hidden unit"),
    (text(tokenizer=TokenizerConfig("hugging_face", "x"), eot_id=49408), r"text\.eot_id 49408 is no id of a vocabulary of 49408"),
    (Config(optim=Optim(lr=2.0, weight_decay=0.5)), r"optim\.weight_decay 0\.5 times lr 2\.0 .* is 1 or more"),
    (
        Config(optim=Optim(lr=0.5, weight_decay=0.5, lr_rules=((".*", 2.0),), weight_decay_rules=((".*", 2.0),))),
        r"optim\.weight_decay 0\.5 times lr 0\.5 and the factors of the rules is 1 or more",
    ),
    (Config(optim=Optim(weight_decay_rules=())), r"optim\.weight_decay_rules is empty, .* end with a rule for '\.\*'"),
    (Config(mesh=MeshConfig(rules=())), r"mesh\.rules is empty"),
    (Config(checkpoint=Checkpoint(every="0ep")), r'checkpoint\.every "0ep" is no step; use "1" or more'),
    (Config(checkpoint=Checkpoint(every="0.4")), r'checkpoint\.every "0\.4" is no step'),
    (Config(duration="9" * 400), r'duration: duration "9{40}" is more than the 2,147,483,647 steps'),
    (Config(optim=Optim(warmup="0")), None),
    (Config(mesh=MeshConfig(data=2)), None),  # how many devices there are is not known yet
]


@pytest.mark.parametrize(("config", "message"), CONTRADICTIONS, ids=[str(message)[:40] for _, message in CONTRADICTIONS])
def test_a_contradiction_is_an_error_that_names_the_field_and_the_remedy(config, message):
    if message is None:
        check(config)
    else:
        with pytest.raises(ConfigError, match=f"^config: (.*)({message})"):
            check(config)


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (Config(batch_size=100), 8, r"batch_size 100 is not divisible by 8 devices; use 96 or 104"),
        (
            Config(batch_size=100, accumulate=8),
            1,
            r"batch_size 100 is not divisible by 1 devices x accumulate 8; use 96 or 104",
        ),
        (Config(batch_size=3), 8, r"batch_size 3 is not divisible by 8 devices; use 8"),
        (Config(eval_batch_size=100), 8, r"eval_batch_size 100 is not divisible by 8 devices; use 96 or 104"),
        (Config(mesh=MeshConfig(fsdp=3)), 8, r"mesh\.fsdp 3 does not divide 8 devices"),
        (Config(mesh=MeshConfig(data=2, fsdp=2)), 8, r"mesh 2 x 2 needs 4 devices; there are 8"),
        (Config(mesh=MeshConfig(data=3, fsdp=2)), 5, r"mesh 3 x 2 needs 6 devices; there are 5"),
        (
            Config(batch_size=40, eval_batch_size=4, accumulate=3),
            4,
            r"batch_size 40 is not divisible by 4 devices x accumulate 3; use 36 or 48",
        ),
    ],
)
def test_what_does_not_fit_the_devices_is_an_error(config, devices, message):
    check(config)
    with pytest.raises(ConfigError, match=f"^config: {message}$"):
        check(config, devices=devices)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("5ep", 525),
        ("0.5ep", 52),
        ("3%", 30),
        ("100%", 1000),
        ("1500", 1500),
        ("20k", 20_000),
        ("1.5M", 1_500_000),
        (" 7 ", 7),
        ("0.007ep", 1),
        ("1.6", 2),
        ("0.27%", 3),
        ("0.0001%", 0),
    ],
)
def test_durations(duration, steps):
    assert to_steps(duration, steps_per_epoch=105, total=1000) == steps


@pytest.mark.parametrize("duration", ["", "ep", "-5", "5e", "5 ep", "1e3", "20K", "nan", "5epochs", ".5ep"])
def test_what_is_no_duration_is_an_error(duration):
    with pytest.raises(ConfigError, match="is not understood; write"):
        to_steps(duration, steps_per_epoch=105, total=1000)


def test_a_plan_is_the_durations_in_steps():
    plan = make_plan(replace(FULL, batch_size=10, duration="4ep"), examples=250)  # 25 steps an epoch
    assert (plan.total, plan.warmup, plan.checkpoint_every) == (100, 3, 10)
    assert plan.eval_every == {"zero": 100, "pairs/of": 25, "probe": 100}
    assert plan.due_evaluations(25) == ["pairs/of"]
    assert plan.due_evaluations(26) == []
    assert plan.due_evaluations(100) == ["zero", "pairs/of", "probe"]
    assert [step for step in range(1, 101) if plan.due_checkpoint(step)] == list(range(10, 101, 10))


def test_what_is_shorter_than_a_step_is_done_every_step():
    evals = {"often": Retrieval("shapes:val", every="0.1ep"), "rarely": Retrieval("shapes:val", every="2.6ep")}
    checkpoint = Checkpoint(every="0.01%")
    plan = make_plan(Config(evals=evals, checkpoint=checkpoint, duration="7ep", batch_size=100), examples=300)  # 3 an epoch
    assert (plan.total, plan.warmup, plan.checkpoint_every) == (21, 1, 1)
    assert plan.eval_every == {"often": 1, "rarely": pytest.approx(7.8)}
    assert [step for step in range(1, 22) if "rarely" in plan.due_evaluations(step)] == [8, 16, 21]


@pytest.mark.parametrize(("batch", "epochs"), [(8, 6), (12, 6), (7, 40), (19, 11), (3, 50)])
def test_what_is_due_every_epoch_is_done_once_in_each_at_the_step_nearest_to_its_end(batch: int, epochs: int) -> None:
    how = {"duration": f"{epochs}ep", "checkpoint": Checkpoint(every="1ep"), "batch_size": batch, "evals": {}}
    plan = make_plan(Config(**how, optim=Optim(warmup="1")), examples=20)
    due = [step for step in range(1, plan.total + 1) if plan.due_checkpoint(step)]
    assert len(due) == epochs
    np.testing.assert_allclose(due, 20 / batch * np.arange(1, epochs + 1), rtol=0, atol=0.5)


def test_a_plan_ends_with_everything_even_when_nothing_divides():
    plan = make_plan(replace(FULL, duration="7", checkpoint=Checkpoint(every="5")), examples=250)
    assert plan.due_checkpoint(7)
    assert len(plan.due_evaluations(7)) == 3


def test_a_plan_without_a_step_or_with_too_long_a_warm_up_is_an_error():
    with pytest.raises(ConfigError, match="is no step"):
        make_plan(Config(duration="0.1ep", batch_size=10), examples=10)
    with pytest.raises(ConfigError, match=r'optim.warmup "2ep" is 20 steps, longer than the run of 10'):
        make_plan(Config(duration="1ep", batch_size=10, optim=Optim(warmup="2ep")), examples=100)
    assert make_plan(Config(duration="1ep", batch_size=10, optim=Optim(warmup="1ep")), examples=100).warmup == 10


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_of_the_repository_is_sound_and_imports_the_config_room_alone(path):
    tree = ast.parse(path.read_text())
    command = re.compile(rf"(jclip train|tpu_slice\.sh NAME ZONE) configs/{path.name}")
    assert command.search(ast.get_docstring(tree) or "")
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(getattr(node, "module", None), alias.name) for node in imports for alias in node.names}
    standard = {("pathlib", "Path"), ("typing", "Literal")}
    assert {module for module, _ in names - {("jclip", "find_model")} - standard} == {"jclip.config"}
    config = load(path)
    for devices in (256,) if "v5e:16x16" in path.read_text() else (1, 8):
        check(config, devices=devices)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


FORMS = [(path, form) for path in RECIPES if "form: Literal" in path.read_text() for form in ("shapes", "clipart", "large")]


@pytest.mark.parametrize(("path", "form"), FORMS, ids=lambda value: getattr(value, "name", value))
def test_every_form_of_a_recipe_is_sound(path: Path, form: str) -> None:
    config = load(path, ["--form", form])
    check(config, devices=16)
    if path.name != "coca.py":  # whose vocabulary and captions are its own
        plain = load(path.with_name("plain.py"), ["--form", form])
        assert (config.data.source, config.evals) == (plain.data.source, plain.evals)
        assert config.duration == plain.duration or config.stages


def test_shapes_are_drawn_and_take_no_data() -> None:
    for name in ("plain.py", "slip.py", "coca.py"):
        with pytest.raises(ConfigError, match="shapes are drawn while training, so that data 'x' would not be read"):
            load(RECIPES[0].with_name(name), ["--data", "x"])


@pytest.mark.parametrize(
    "instance", [FULL, FULL.model, FULL.model.towers["image"], FULL.evals["probe"], FULL.objectives["image_text"]]
)
def test_configs_are_frozen(instance):
    name = dataclasses.fields(instance)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, name, None)


def test_every_field_of_the_schema_is_documented():
    folder = Path(room.__file__).parent
    files = [
        *(folder / f"{name}.py" for name in ("schema", "augment", "filter", "towers")),
        *folder.glob("objectives/*.py"),
        *folder.glob("evals/*.py"),
    ]
    tree = ast.parse("\n".join(file.read_text() for file in files))
    fields = 0
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        assert ast.get_docstring(cls), f"{cls.name} has no docstring"
        for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                fields += 1
                documented = (
                    isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
                )
                assert documented, f"{cls.name}.{ast.unparse(node.target)} has no docstring"
    assert fields > 100


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_suite_fits_a_model_of_two_towers_and_says_its_command(path: Path) -> None:
    sources = ["--labelled", "shapes:test", "--train", "shapes:train", "--captioned", "shapes:val"]
    suite = load_suite(path, sources if path.stem == "suite_data" else [])
    model = architecture("ViT-tiny-test")
    if path.stem == "suite_sound":
        model = replace(model, towers={"sound": SpectrogramTower(), "text": model.towers["text"]})
    check_suite(suite, model)
    assert re.search(rf"jclip eval runs/\w+ --suite configs/{path.name}", path.read_text())


@pytest.mark.parametrize("path", FILTERS, ids=lambda path: path.stem)
def test_every_filter_is_sound_and_says_its_command_and_its_source(path: Path) -> None:
    check_filter(load_filter(path))
    assert f"--recipe configs/{path.name}" in path.read_text()
    assert "arXiv:" in path.read_text()


@pytest.mark.parametrize("path", ADAPTATIONS, ids=lambda path: path.stem)
def test_every_adaptation_is_sound_and_says_its_command(path: Path) -> None:
    arguments = ["--dataset", "dtd", "--root", "data/dtd"] if path.stem == "adapt_published" else []
    config = load_adapt(path, [], [*arguments, "--source", "a", "--val", "b", "--test", "c"])
    check_adapt(config)
    assert from_json(json.loads(json.dumps(to_json(config))), Adapt) == config
    assert f"--recipe configs/{path.name}" in path.read_text()


def test_whole_numbers_in_a_file_become_floats_where_the_field_is_one() -> None:
    data = to_json(Config())
    data["optim"]["lr"], data["optim"]["weight_decay"] = 1, 0
    optim = from_json(data).optim
    assert (optim.lr, optim.weight_decay) == (1.0, 0.0)
    assert (type(optim.lr), type(optim.weight_decay)) == (float, float)  # 1 and 1.0 would not be the same record


def test_differences_are_reported_on_either_side() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b: 2 -> None", "c: None -> 3"]
    old, new = Config(), Config(evals={"e": ZeroShot("shapes:test")}, optim=Optim(lr=0.5))
    assert differences(old, new)[0] == "optim.lr: 0.001 -> 0.5"
    assert [line.split(": ")[0] for line in differences(old, new)] == ["optim.lr", "evals.e"]
    assert [line.split(": ")[0] for line in differences(new, old)] == ["optim.lr", "evals.e"]


def test_epochs_are_of_the_examples_not_of_whole_batches() -> None:
    config = Config(batch_size=16, duration="3ep", evals={"e": ZeroShot("shapes:test", every="7")})
    plan = make_plan(config, examples=100)
    assert plan.total == 19  # 3 x 6.25, rounded; 3 x 6 would be 18
    assert [step for step in range(1, 20) if plan.due_evaluations(step)] == [7, 14, 19]
