"""Evaluation (paper section 5): tasks, a runner that resumes, measures with intervals, and the baselines to beat."""

from herder.evaluate.answers import AnswerItem, AnswersTask
from herder.evaluate.baselines import (
    bits_per_byte,
    compressed_bits_per_byte,
    most_frequent_answer,
    nearest_answers,
    score_answers,
)
from herder.evaluate.compression import CompressionConfig, compare_compression
from herder.evaluate.dialogues import DialogueEvaluation, evaluate_dialogues
from herder.evaluate.ngram import KneserNey
from herder.evaluate.quality import answers_well, fault
from herder.evaluate.run import evaluate
from herder.evaluate.task import (
    BitsPerByteTask,
    ChoiceItem,
    ChoiceTask,
    GenerationItem,
    GenerationTask,
    TextItem,
)
from herder.evaluate.tuned import ModelEvaluation, evaluate_model, suite

__all__ = [
    "AnswerItem",
    "AnswersTask",
    "BitsPerByteTask",
    "ChoiceItem",
    "ChoiceTask",
    "CompressionConfig",
    "DialogueEvaluation",
    "GenerationItem",
    "GenerationTask",
    "KneserNey",
    "ModelEvaluation",
    "TextItem",
    "answers_well",
    "bits_per_byte",
    "compare_compression",
    "compressed_bits_per_byte",
    "evaluate",
    "evaluate_dialogues",
    "evaluate_model",
    "fault",
    "most_frequent_answer",
    "nearest_answers",
    "score_answers",
    "suite",
]
