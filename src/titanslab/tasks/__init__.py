"""Tasks that measure recall: they make samples and score predictions, and know no model."""

from titanslab.data.encode import TokenCounter, load_counter
from titanslab.tasks.babilong.samples import BABILong, score_babilong
from titanslab.tasks.mixture import Mixture
from titanslab.tasks.niah.samples import NIAH, score_niah
from titanslab.tasks.recall.kv import KVRecall, make_kv_recall
from titanslab.tasks.recall.samples import RecallTask
from titanslab.tasks.sample import TaskSample, derive_seed, length_label, parse_length

__all__ = [
    "NIAH",
    "BABILong",
    "KVRecall",
    "Mixture",
    "RecallTask",
    "TaskSample",
    "TokenCounter",
    "derive_seed",
    "length_label",
    "load_counter",
    "make_kv_recall",
    "parse_length",
    "score_babilong",
    "score_niah",
]
