"""One model of a study with one seed: trained stage by stage, then evaluated. A job runs in its own process.

    python -m titanslab.experiments.job JOB

JOB is the JSON of a `Job`. Finished stages and answers are kept, and an interrupted stage continues.
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
from typing import TYPE_CHECKING

from titanslab.documents import parse_json
from titanslab.experiments import asking
from titanslab.experiments.study import MAIN, Ask, Study, load_study
from titanslab.locks import only_writer

if TYPE_CHECKING:
    from titanslab.training.recipe import Recipe

LOG = "log.txt"


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
        return load_study(self.study)

    @property
    def ask(self) -> Ask:
        """[ask] with the changes from the command line."""
        return self.plan.asked(self.changes)

    @property
    def stages(self) -> list[str]:
        """Names of the stages, in order."""
        return self.plan.sets[self.set].stages_of(self.row, self.until)

    def recipes(self) -> list[Recipe]:
        """The recipe of each stage. A later stage starts from the run folder of the stage before it."""
        stages = self.stages
        links = [f"{stage}:model.pretrained={self.folder / before}" for before, stage in itertools.pairwise(stages)]
        return self.plan.recipes(self.set, self.row, stages, [*links, *self.changes], self.seed)

    def rounds(self) -> list[asking.Round]:
        """The rounds of questions for the model of the last stage."""
        return asking.rounds(self.ask, self.stages[-1], has_memory(self.recipes()[0]), self.far)


def has_memory(recipe: Recipe) -> bool:
    """Whether the recipe of a first stage makes a model with a neural memory."""
    return recipe.model.architecture is None and recipe.model.variant != "attention"


def run(job: Job) -> None:
    """Train the unfinished stages, then answer the unanswered samples."""
    from titanslab.runs.loading import quiet_libraries

    quiet_libraries()
    from titanslab.training.run import RECIPE, train

    for stage, recipe in zip(job.stages, job.recipes(), strict=True):
        print(f"{job.name}: training, stage {stage}", file=sys.stderr, flush=True)
        output = job.folder / stage
        train(recipe, output, resume=(output / RECIPE).exists())
    for part in job.rounds():
        print(f"{job.name}: {part.folder} at {part.lengths}", file=sys.stderr, flush=True)
        asking.answer(job.ask, part, job.folder / job.stages[-1], job.folder, Path(job.work) / "samples", job.device)


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
        run(given)
