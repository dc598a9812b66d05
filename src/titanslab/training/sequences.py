"""The sequences and the model of a recipe with [sequences]."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from titanslab.data import load_tokenizer
from titanslab.data.order import ShuffledRows
from titanslab.files import write_whole
from titanslab.training.model import config_options
from titanslab.training.recipe import Recipe
from titanslab.training.sequence_sections import ClassifierRecipe, SequencesRecipe
from titanslab.training.sources import RunData

TEST = "test.tsv"  # in the run folder, the sequences that were set aside


class BothStrands:
    """Endless rows of which half, drawn by (seed, index), are the reverse complement of their sequence."""

    def __init__(self, forward: ShuffledRows, complement: ShuffledRows, seed: int) -> None:
        self.strands, self.seed = (forward, complement), seed

    def __getitem__(self, index: int) -> Any:
        draw = np.random.default_rng([self.seed, 1, index]).integers(2)
        return self.strands[int(draw)][index]


def open_sequences(recipe: Recipe, say: Callable[[str], None]) -> tuple[RunData, Callable[[], Any]]:
    """Read the sequences of a recipe, and a function that makes its model.

    Raises FileNotFoundError or ValueError for sources that are missing or cannot be read, and for labels of the
    validation that the training does not have.
    """
    from titanslab.data.dna.dataset import SequenceCollator, SequenceDataset
    from titanslab.data.encode import TextEncoder
    from titanslab.runs.sequences import SequenceFacts, write_facts

    section: SequencesRecipe = recipe.data
    tokenizer = load_tokenizer(section.tokenizer)
    train, held, test = read_parts(section, recipe.training.seed)
    labels = train.label_names
    longest = max(len(sequence) for sequence in train.sequences)
    length = section.max_length or longest
    facts = SequenceFacts(labels, length, section.reverse_complement)
    encode = TextEncoder(tokenizer).encode
    sets = partial(SequenceDataset, encode=encode, labels=labels, max_length=length)
    seed = recipe.training.seed
    rows: Any = ShuffledRows(sets(train), seed)  # type: ignore[arg-type]
    if section.reverse_complement:
        rows = BothStrands(rows, ShuffledRows(sets(train, rc=True), seed), seed)  # type: ignore[arg-type]
    validation = sets(held)
    say(
        f"{section.train}: {len(train):,} sequences to train on, {len(held):,} to validate with, {len(labels)} labels, "
        f"up to {longest:,} bases"
    )
    if cut := sum(len(sequence) > length for sequence in train.sequences):
        say(f"warning: {cut:,} sequences are cut off after sequences.max_length = {length:,} bases")
    collate = SequenceCollator(tokenizer.pad_token_id)

    def save(folder: Path) -> None:
        write_facts(folder, facts)
        if len(test):
            rows = (f"{sequence}\t{label}\n" for sequence, label in zip(test.sequences, test.labels, strict=True))
            write_whole(folder / TEST, "sequence\tlabel\n" + "".join(rows))

    data = RunData(
        rows,
        lambda model_type: collate,
        tokenizer,
        len(train),
        validation,  # type: ignore[arg-type]
        score="eval_accuracy",
        compute_metrics=accuracy,
        unit="nats per sequence",
        counted="bases",
        save=save,
    )
    return data, partial(build_classifier, recipe.model, labels, tokenizer, length)


def read_parts(section: SequencesRecipe, seed: int) -> tuple[Any, Any, Any]:
    """The sequences to train on, those to validate with, and those that are set aside for a test."""
    from titanslab.data.dna.labelled import Columns, read_labelled
    from titanslab.tasks.dna.sets import is_set, open_splits

    columns = Columns(section.sequence_column, section.label_column, section.reference)
    if section.validation is None:
        share, whole = section.validation_share, is_set(section.train)
        test_share = 0.0 if whole else section.test_share
        parts = open_splits(section.train, columns=columns, seed=seed, validation_share=share, test_share=test_share)
        return parts.train, parts.validation, parts.test.take(()) if whole else parts.test
    train = open_splits(section.train, columns=columns, validation_share=0.0).train
    return train, read_labelled(section.validation, columns, "sequences.validation"), train.take(())


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of right labels, for the Trainer."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.argmax(logits, axis=-1) == prediction.label_ids).mean())}


def build_classifier(section: ClassifierRecipe, labels: Sequence[str], tokenizer: Any, length: int) -> Any:
    """The classifier that [model] describes, in float32."""
    from titanslab.models.classifiers import classifier_config, new_classifier
    from titanslab.runs.classifier import pretrained_classifier

    if section.pretrained is not None:
        return pretrained_classifier(section.pretrained, labels, **config_options(section.options)).train()
    named = {"preset": section.preset, "variant": section.variant} if section.architecture is None else {}
    options = named | config_options(section.options)
    config = classifier_config(section.architecture, options, labels=labels, tokenizer=tokenizer, max_length=length)
    return new_classifier(config)
