"""Losses: pure functions of arrays, exact on any mesh."""

from jclip.losses.affinity import affinity
from jclip.losses.contrastive import contrastive
from jclip.losses.hopfield import retrieve
from jclip.losses.prototypes import prototype_cross_entropy
from jclip.losses.sim_reg import sim_reg
from jclip.losses.token_wise import token_wise
from jclip.losses.triplet import triplet
from jclip.losses.two_views import negative_cosines, nt_xent
from jclip.losses.words import word_cross_entropy

__all__ = [
    "affinity",
    "contrastive",
    "negative_cosines",
    "nt_xent",
    "prototype_cross_entropy",
    "retrieve",
    "sim_reg",
    "token_wise",
    "triplet",
    "word_cross_entropy",
]
