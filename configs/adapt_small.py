"""All methods of adaptation with settings for a small model on a CPU, where the published ones would take hours.

    jclip adapt runs/quickstart --recipe configs/adapt_small.py --source TRAIN --val VAL --test TEST --out runs/adapted

Nothing is augmented, so that each image is encoded once; contexts are few, for towers of short texts; LoRA and fine-tuning take
fewer steps, at higher rates. docs/log.md has what comes out of it on handwritten digits.
"""

from jclip.config import (
    Adapt,
    Augment,
    ClipAdapter,
    CoCoOp,
    CoOp,
    CrossModal,
    FineTune,
    LinearHead,
    LoRA,
    PromptSearch,
    TipAdapter,
    TipAdapterF,
    Views,
)

STILL = Views(0)
STEPS, MOST = (50, 50), (50.0, 50.0)
WHOLE = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))


def get_adapt() -> Adapt:
    return Adapt(
        methods={
            "tip": TipAdapter(steps=STEPS, most=MOST, views=STILL),
            "tip_f": TipAdapterF(steps=STEPS, most=MOST, views=STILL, training_views=STILL),
            "clip_adapter": ClipAdapter(views=STILL),
            "linear": LinearHead(views=STILL),
            "cross_modal": CrossModal(views=STILL),
            "coop": CoOp(contexts=4, views=STILL, remat=False),
            "cocoop": CoCoOp(contexts=4, words="", batch_size=8, views=STILL, remat=False),
            "lora": LoRA(steps_per_shot=40, lr=1e-3, augment=WHOLE, remat=False),
            "fine_tune": FineTune(epochs=40, lr=(1e-4, 3e-4), augment=WHOLE, soup="greedy", remat=False),
            "prompts": PromptSearch(),
        },
    )
