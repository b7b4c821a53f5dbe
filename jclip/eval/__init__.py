"""Evaluation: functions of embeddings and labels, and evaluators, built from a config, called with parameters."""

from jclip.embedding import Embedding
from jclip.eval.cache import FeatureCache
from jclip.eval.embed import Functions, embed_source, embed_texts, tower_facts
from jclip.eval.evaluators import EVALUATORS, make_evaluator, run_evaluators
from jclip.eval.labels import read_entries
from jclip.eval.logistic import fit_logistic
from jclip.eval.probe_file import Probe, load_probe, save_probe
from jclip.eval.probes import fit_probe
from jclip.eval.ranks import rank_answers
from jclip.eval.result import Evaluator, Result
from jclip.eval.retrieval import recall_at, retrieval_metrics
from jclip.eval.templates import read_templates, template_set
from jclip.eval.zero_shot import class_embeddings, zero_shot_metrics

__all__ = [
    "EVALUATORS",
    "Embedding",
    "Evaluator",
    "FeatureCache",
    "Functions",
    "Probe",
    "Result",
    "class_embeddings",
    "embed_source",
    "embed_texts",
    "fit_logistic",
    "fit_probe",
    "load_probe",
    "make_evaluator",
    "rank_answers",
    "read_entries",
    "read_templates",
    "recall_at",
    "retrieval_metrics",
    "run_evaluators",
    "save_probe",
    "template_set",
    "tower_facts",
    "zero_shot_metrics",
]
