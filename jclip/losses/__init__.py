"""Losses: pure functions of arrays, exact on any mesh."""

from jclip.losses.contrastive import contrastive
from jclip.losses.next_token import next_token
from jclip.losses.triplet import triplet

__all__ = ["contrastive", "next_token", "triplet"]
