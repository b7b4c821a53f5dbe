"""Losses: pure functions of arrays, exact on any mesh."""

from jclip.losses.affinity import affinity
from jclip.losses.contrastive import contrastive
from jclip.losses.triplet import triplet

__all__ = ["affinity", "contrastive", "triplet"]
