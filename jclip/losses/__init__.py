"""Losses: pure functions of arrays, exact on any mesh."""

from jclip.losses.contrastive import contrastive
from jclip.losses.hopfield import retrieve
from jclip.losses.sim_reg import sim_reg
from jclip.losses.token_wise import token_wise
from jclip.losses.triplet import triplet

__all__ = ["contrastive", "retrieve", "sim_reg", "token_wise", "triplet"]
