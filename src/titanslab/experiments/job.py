"""One model of a study with one seed: tuned, trained stage by stage, then evaluated. A job runs in its own process.

    python -m titanslab.experiments.job JOB [speed]

JOB is the JSON of a `Job`. Finished stages and answers are kept, and an interrupted stage continues. With `speed` the
steps of a new model are timed, and nothing else is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titanslab.documents import parse_json
from titanslab.experiments import asking, tuning
from titanslab.experiments.sections import Ask, row_lengths
from titanslab.experiments.study import CPU, FIRST, MAIN, Study, load_study, split_change
from titanslab.locks import only_writer

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe

LOG = "log.txt"
SPEED = "speed"  # the argument of a process that times steps
RATE = "training.learning_rate"
NEAR = 8


@dataclass(frozen=True)
class Job:
    """One row of a study with one seed, in a work folder.

    Args:
        study: path of the study file.
        work: the work folder. The job's folder is `WORK/SET/ROW-seedN`; it has a run folder for each stage, and the
            answers of the last stage's model.
        set, row, seed: the model.
        until: the last stage to train, whose model answers; None = the last required stage.
        changes: changes from the command line, see `Study.recipes`.
        far: whether the model answers at the far lengths.
        device: device on which the model answers.
        scale, budget: of the study, see `load_study`.
    """

    study: str
    work: str
    row: str
    set: str = MAIN
    seed: int = 0
    until: str | None = None
    changes: tuple[str, ...] = ()
    far: bool = True
    device: str = "cpu"
    scale: str = CPU
    budget: float = 1.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return parse_json(text, cls, origin="JOB")

    @property
    def name(self) -> str:
        return f"{self.set}/{self.row}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return Path(self.work) / self.name

    @cached_property
    def plan(self) -> Study:
        """The study, read from its file."""
        return load_study(self.study, self.scale, self.budget)

    @property
    def ask(self) -> Ask:
        """[ask] with the changes from the command line."""
        return self.plan.asked(self.changes, self.set)

    def measured(self, section: str) -> Any:
        """A section of the study for this row, with the changes from the command line."""
        return self.plan.measured(section, self.set, self.row, self.changes)

    @property
    def stages(self) -> list[str]:
        """Names of the stages, in order."""
        return self.plan.sets[self.set].stages_of(self.row, self.until)

    def recipes(self) -> list[Recipe]:
        """The recipe of each stage. A later stage starts from the run folder of the stage before it."""
        stages = self.stages
        links = [f"{stage}:model.pretrained={self.folder / before}" for before, stage in itertools.pairwise(stages)]
        rate = tuning.read(self.folder).get("chosen") if self.tunes else None
        chosen = [] if rate is None else [f"{FIRST}:{RATE}={rate}"]
        return self.plan.recipes(self.set, self.row, stages, [*links, *chosen, *self.changes], self.seed)

    @property
    def tunes(self) -> bool:
        """Whether the learning rate is chosen by the study's sweep, and not by the command line."""
        given = [split_change(change) for change in self.changes]
        fixed = any(key.startswith(f"{RATE}=") and p in ("", self.set, self.row, FIRST) for p, key in given)
        return bool(self.measured("sweep").rates) and not fixed

    def lengths(self, section: str) -> list[int]:
        """The lengths of [perplexity] or [speed] in tokens; a row without `far` is timed at `NEAR` rows at most."""
        row = self.recipes()[0].data.sequence_length
        found = row_lengths(self.measured(section).lengths, row, f"{section}.lengths")
        return found if self.far or section == "perplexity" else [length for length in found if length <= NEAR * row]

    @property
    def only_speed(self) -> bool:
        """Whether the row is timed and not trained: a set with [speed] and neither perplexity nor questions."""
        return bool(self.measured(SPEED).lengths) and not self.measured("perplexity").lengths and not self.ask.task

    @property
    def times(self) -> bool:
        """Whether the row's steps are timed, and speed.json does not have them yet."""
        from titanslab.experiments.speed import read, wanted_settings

        lengths = self.lengths(SPEED)
        return bool(lengths) and read(self.folder).get("settings") != wanted_settings(self.measured(SPEED), lengths)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train and measure; for a row with questions, its process finds that out."""
        from titanslab.experiments import common_sense, text_loss
        from titanslab.training.run import RECIPE, RESULT

        last, language = self.folder / self.stages[-1], self.measured("language")
        if not (last / RESULT).exists() or (self.tunes and tuning.read(self.folder).get("chosen") is None):
            return False
        if self.rounds() or (last / RECIPE).read_text() != self.recipes()[-1].to_toml():
            return False
        measured = text_loss.wanted_settings(self.measured("perplexity"), self.lengths("perplexity"))
        if measured["lengths"] and text_loss.read(self.folder).get("settings") != measured:
            return False
        asked = language.tasks and language.data
        return not asked or common_sense.read(self.folder).get("settings") == common_sense.wanted_settings(language)

    def rounds(self) -> list[asking.Round]:
        """The rounds of questions for the model of the last stage."""
        return asking.rounds(self.ask, self.stages[-1], has_memory(self.recipes()[0]), self.far)


def has_memory(recipe: Recipe) -> bool:
    """Whether the recipe of a first stage makes a model with a neural memory."""
    return recipe.model.architecture is None and recipe.model.variant != "attention"


def run(job: Job) -> None:
    """Tune the learning rate, train the unfinished stages, measure the model, and answer the unanswered samples."""
    from titanslab.runs.loading import quiet_libraries

    quiet_libraries()
    import torch

    torch.set_flush_denormal(True)
    from titanslab.training.run import RECIPE, train

    if job.tunes:
        tuning.tune(job.recipes()[0], job.measured("sweep"), job.measured("perplexity"), job.folder, job.device)
    for stage, recipe in zip(job.stages, job.recipes(), strict=True):
        print(f"{job.name}: training, stage {stage}", file=sys.stderr, flush=True)
        output = job.folder / stage
        train(recipe, output, resume=(output / RECIPE).exists())
    last = job.folder / job.stages[-1]
    if lengths := job.lengths("perplexity"):
        from titanslab.experiments.text_loss import measure_once

        print(f"{job.name}: perplexity at {lengths}", file=sys.stderr, flush=True)
        measure_once(last, job.measured("perplexity"), lengths, job.folder, job.device)
    for part in job.rounds():
        print(f"{job.name}: {part.folder} at {part.lengths}", file=sys.stderr, flush=True)
        asking.answer(job.ask, part, last, job.folder, Path(job.work) / "samples", job.device)
    language = job.measured("language")
    if language.tasks and language.data:
        from titanslab.experiments.common_sense import answer_once

        print(f"{job.name}: {', '.join(language.tasks)}", file=sys.stderr, flush=True)
        answer_once(last, language, job.folder, job.device)


def time_job(job: Job) -> None:
    """Time the steps of the row's model, unless speed.json has them."""
    from titanslab.data import load_tokenizer
    from titanslab.experiments.speed import time_once
    from titanslab.runs.loading import pick_device, quiet_libraries

    quiet_libraries()
    recipe = job.recipes()[0]
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    time_once(recipe, tokenizer, job.measured(SPEED), job.lengths(SPEED), job.folder, pick_device(job.device))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that writes the folder; exit if another one does."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_writer(folder, "job folder"))
        except ValueError as error:
            raise SystemExit(str(error)) from None
        yield


if __name__ == "__main__":
    given = Job.from_json(sys.argv[1])
    with alone(given.folder):
        (time_job if SPEED in sys.argv[2:] else run)(given)
