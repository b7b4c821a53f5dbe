"""Objectives that a teacher sets: another model, as towers that are not trained, or as embeddings that it has left."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from jclip.config.evals import Count
from jclip.config.objectives.family import Family
from jclip.config.ranges import Range
from jclip.config.towers import Tower


@dataclass(frozen=True)
class FeatureDistillation(Family):
    """A view's embedding like a teacher's: |p - t|^2 of unit vectors (feature distillation of Yang et al. 2024, CLIP-KD)."""

    student: str = "image"
    """View of a tower that learns."""
    teacher: str = "image@teacher"
    """View of a teacher's tower, or one that is stored."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.student, self.teacher

    def teachers(self) -> tuple[str, ...]:
        """The teacher's."""
        return (self.teacher,)

    def trains(self) -> tuple[str, ...]:
        """The student's."""
        return (self.student,)

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """A teacher that is the student."""
        if self.student == self.teacher:
            yield f": student and teacher are both {self.student!r}"


@dataclass(frozen=True)
class AffinityDistillation(Family):
    """Similarities of each `a` to the batch's `b`, and the reverse, as a teacher finds them: the divergence of two softmaxes over
    the batch (affinity mimicking of Wu et al. 2023, TinyCLIP; the distillation loss of Vasu et al. 2024, MobileCLIP)."""

    a: str = "image"
    """One view of a tower that learns."""
    b: str = "text"
    """The other."""
    teacher_a: str = "image@teacher"
    """The first view of a teacher's tower, or as it is stored."""
    teacher_b: str = "text@teacher"
    """The other."""
    logit_scale: Annotated[float, Range(least=1, most=100)] = 1 / 0.07
    """Initial factor on the student's cosines, learned as a logarithm, kept within 1 and 100."""
    teacher_scale: Annotated[float, Range(least=1, most=100)] = 100.0
    """Factor on the teacher's cosines (CLIP's own: 100)."""
    block: Count = 256
    """Columns of the logits computed at a time; memory, not the result, depends on it."""

    def views(self) -> tuple[str, ...]:
        """Names of the views that it reads."""
        return self.a, self.b, self.teacher_a, self.teacher_b

    def teachers(self) -> tuple[str, ...]:
        """The teacher's."""
        return self.teacher_a, self.teacher_b

    def trains(self) -> tuple[str, ...]:
        """The student's."""
        return self.a, self.b

    def misfits(self, tower_of: Mapping[str, str], towers: Mapping[str, Tower], batch_size: int) -> Iterator[str]:
        """The same view twice."""
        if len(set(self.views())) < 4:
            yield f": a, b, teacher_a and teacher_b are {', '.join(map(repr, self.views()))}; use four views"
