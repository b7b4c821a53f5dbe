"""Sounds as further shots of cross-modal adaptation: of their classes, as many as images, by the tower that hears them."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from adapt_fakes import CLASSES, WIDTH, features, make_task, unit64
from test_adaptation import SHORT
from test_spectrogram import SMALL, TEXT

from jclip import adaptation
from jclip.adapt import fit
from jclip.adapt.data import AdaptData
from jclip.adapt.heads import accuracy
from jclip.adapt.linear import other_examples
from jclip.adapt.task import LabelledFeatures, Task
from jclip.clip import create_model
from jclip.config import Adapt, ConfigError, Contrastive, CrossModal, Labels, MeshConfig, Model, architecture
from jclip.data import open_source
from jclip.inference import Encoder
from jclip.sharding import make_mesh

SOUNDS = "shapes:heldout?size=8&seed=3"
ONLY = ("yellow circle", "blue square", "red triangle")
HEARD = CrossModal(**SHORT, extra=SOUNDS, tower="sound")


def with_sounds(task: Task, sounds: LabelledFeatures) -> Task:
    return dataclasses.replace(task, encode=dataclasses.replace(task.encode, extra=lambda *_: sounds))


def test_sounds_stand_behind_the_texts_with_the_labels_of_their_classes() -> None:
    task = make_task(shots=2)
    labels = np.repeat(np.arange(CLASSES), 2)
    sounds = LabelledFeatures(features(np.random.default_rng(1), np.eye(CLASSES, WIDTH), labels, 0.1), labels)
    found = other_examples(HEARD, with_sounds(task, sounds))
    np.testing.assert_array_equal(found.z, np.concatenate([task.classifier, sounds.features.z]))
    assert found.labels.tolist() == [*range(CLASSES), *labels]
    assert len(other_examples(CrossModal(**SHORT), task).labels) == CLASSES


def test_sounds_help_where_images_and_texts_say_little() -> None:
    """The paired mean over 10 seeds, on clouds: sounds near the centres of their classes, then sounds of other classes."""
    how: dict[str, Any] = {**SHORT, "batches": (8,), "iterations": 200, "every": 100, "start": "zero", "wise": (0.0,)}
    gains = []
    for seed in range(10):
        task = make_task(shots=1, seed=seed, noise=1.0, text_noise=1.0)
        centres = np.random.default_rng([seed, 1]).normal(size=(CLASSES, WIDTH))  # again
        labels, own = np.repeat(np.arange(CLASSES), 100), np.arange(CLASSES)
        test = features(np.random.default_rng(99), centres, labels, 1.0)
        sounds = features(np.random.default_rng([seed, 8]), centres, own, 0.3)
        heard = CrossModal(**how, extra="sounds", tower="sound")
        tasks = (
            task,
            with_sounds(task, LabelledFeatures(sounds, own)),
            with_sounds(task, LabelledFeatures(sounds, np.roll(own, 1))),
        )
        without, right, wrong = (
            accuracy(fit(m, t).head, test, labels) for m, t in zip((CrossModal(**how), heard, heard), tasks, strict=True)
        )
        gains.append((right - without, wrong - without))
    assert np.mean(gains, axis=0)[0] > 0.02
    assert np.mean(gains, axis=0)[1] < -0.02


@functools.cache
def encoder() -> Encoder:
    """A model of three towers, of random weights."""
    towers = {"image": architecture("ViT-tiny-test").towers["image"], "sound": dataclasses.replace(SMALL, depth=1), "text": TEXT}
    pairs = {f"{name}_text": Contrastive(name, "text") for name in ("image", "sound")}
    clip = dataclasses.replace(create_model(Model(towers, embed_dim=16)), objectives=pairs)
    params = clip.init(jax.random.key(0))
    return Encoder(clip.config, clip.objectives, params=params, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))


def data(**changes: Any) -> AdaptData:
    places = {"source": "shapes:heldout?size=8&seed=1", "val": "shapes:heldout?size=8&seed=2", "test": "shapes:heldout?size=8"}
    how = {"methods": {"heard": HEARD}, "labels": Labels(only=ONLY), "shots": (1, 2), "seeds": 1, "batch_size": 16, **changes}
    return adaptation.make_data(Adapt(**places, **how), encoder(), None, None)


def test_each_seed_has_as_many_sounds_as_images_of_every_class() -> None:
    opened = data()
    opened.require()
    one, two = (opened._extra(k, 0, SOUNDS, "sound") for k in (1, 2))
    assert np.bincount(two.labels).tolist() == [2, 2, 2]
    rows = opened.opened(SOUNDS).draw(opened.names, 2, 0)
    source = open_source(SOUNDS)
    assert [source[int(row)]["label"] for row in rows.rows] == [list(source.classes).index(ONLY[i]) for i in two.labels]
    heard = encoder().embed("sound", [source[int(row)]["sound"] for row in rows.rows])
    np.testing.assert_allclose(two.features.z, heard, atol=1e-5)
    assert np.ptp(unit64(two.features.z), axis=0).max() > 1e-3
    assert {row.tobytes() for row in one.features.z} < {row.tobytes() for row in two.features.z}
    fitted = fit(HEARD, opened.task(2, 0)[0])
    without = fit(CrossModal(**SHORT), opened.task(2, 0)[0])
    assert (fitted.head.arrays["weights"] != without.head.arrays["weights"]).any()


def test_sounds_that_cannot_be_shots_are_refused() -> None:
    for change, message in (
        ({"extra": "shapes:heldout?size=8&seed=1"}, None),
        ({"extra": "shapes:heldout?size=8"}, r"test has the very examples of methods.heard.extra"),
        ({"extra": "shapes:heldout?size=8&seed=3&length=2"}, r"k=2 examples"),
        ({"tower": "noise"}, r"methods.heard.tower: the model has no tower 'noise'; towers: image, sound, text"),
    ):
        opened = data(methods={"heard": dataclasses.replace(HEARD, **change)})
        if message is None:  # sounds of the very scenes of the shots are shots as well
            opened.require()
            continue
        with pytest.raises(ConfigError, match=message):
            opened.require()
