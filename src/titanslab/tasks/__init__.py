"""Tasks that measure recall: they make samples and score predictions, and know no model."""

from titanslab.tasks.babilong import BABILong, score_babilong
from titanslab.tasks.kv_recall import KVRecall, accuracy_by_distance, make_kv_recall
from titanslab.tasks.mixture import Mixture, mixture
from titanslab.tasks.niah import NIAH, score_niah
from titanslab.tasks.recall import RecallTask
from titanslab.tasks.sample import TaskSample, derive_seed, length_label, parse_length
from titanslab.tasks.tokens import TokenCounter, load_counter

__all__ = [
    "NIAH",
    "BABILong",
    "KVRecall",
    "Mixture",
    "RecallTask",
    "TaskSample",
    "TokenCounter",
    "accuracy_by_distance",
    "derive_seed",
    "length_label",
    "load_counter",
    "make_kv_recall",
    "mixture",
    "parse_length",
    "score_babilong",
    "score_niah",
]
