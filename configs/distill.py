"""A small CLIP taught by a larger one: its embeddings of each view, and which images and texts of a batch it finds alike.

    jclip train configs/quickstart.py --workdir runs/teacher
    jclip train configs/distill.py --teacher runs/teacher --workdir runs/student
    jclip train configs/distill.py --form clipart --data data/clipart --teacher runs/clipart --workdir runs/student_clipart
    jclip compile configs/distill.py --form large --teacher ViT-L-14 --topology v5e:4x8

The teacher is a workdir, a folder or file of weights, or hf://ORG/NAME. It sees each batch beside the student, is not
trained, and is left out of the model that comes of it. Affinities are the distillation of MobileCLIP (Vasu et al. 2024) and
TinyCLIP (Wu et al. 2023), features those of CLIP-KD (Yang et al. 2024). To see the teacher once instead, store its embeddings
with `jclip embed` and give the views of the teacher as `stored` (docs/objectives.md).

The student has a third of the teacher's blocks, at least one, and is its towers otherwise.
"""

from typing import Literal

from jclip import find_model
from jclip.config import (
    AffinityDistillation,
    Config,
    FeatureDistillation,
    InitFrom,
    Tower,
    View,
    beside,
    replace,
    replace_each,
)

TEACHERS = {"teacher_image": "image", "teacher_text": "text"}
LOCKED = r"teacher_(image|text)(_projection)?/.*"


def get_config(form: Literal["shapes", "clipart", "large"] = "shapes", data: str = "", teacher: str = "ViT-B-32") -> Config:
    """The recipe; form and data are those of configs/plain.py. An architecture as `teacher` is good for `jclip compile`."""
    config = beside(__file__, "plain.py", form=form, data=data)
    model = find_model(teacher)
    students = {name: smaller(model.towers[name]) for name in TEACHERS.values()}
    changes = {
        "model.embed_dim": model.embed_dim,
        "model.towers": {**students, **{name: model.towers[there] for name, there in TEACHERS.items()}},
        "init_from": InitFrom(teacher, rules=((LOCKED, "load"), (r".*", "scratch")), towers=TEACHERS),
        "optim.lr_rules": ((LOCKED, 0.0), (r".*", 1.0)),
        "views": {
            f"{name}@teacher": View(f"teacher_{name}", config.data.fields.get(name, name), same_as=name) for name in students
        },
        "objectives": {
            **config.objectives,
            "affinities": AffinityDistillation(),
            **{f"{name}_features": FeatureDistillation(name, f"{name}@teacher") for name in students},
        },
    }
    return replace_each(config, changes)


def smaller(tower: Tower) -> Tower:
    """A third of the blocks, at least one."""
    return tower if not hasattr(tower, "depth") else replace(tower, "depth", max(1, tower.depth // 3))
