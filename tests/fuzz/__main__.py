"""`python -m tests.fuzz N SEED [KIND ...] [--case KIND:INDEX] [--folder FOLDER]`: see the package."""

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from .driver import DONE, KINDS, REFUSED, Report, _settle, fuzz, one, prepare, shared


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give malformed inputs to titans.")
    parser.add_argument("number", type=int, help="how many inputs")
    parser.add_argument("seed", type=int, help="the same seed makes the same inputs")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--case", metavar="KIND:INDEX", help="one input alone, with its traceback; its files stay")
    parser.add_argument("--folder", type=Path, help="where the files are; default: a new temporary folder")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    warm_up()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="titans-fuzz-"))).resolve()
    if given.case:
        kind, _, index = given.case.partition(":")
        return repeat(kind, int(index), given.seed, folder)
    reports = []
    for report in fuzz(shared(given.number, given.kinds or list(KINDS)), given.seed, folder):
        reports.append(report)
        if report.fault:
            print(f"{report.kind}:{report.index} {report.name[:90]}\n    {report.fault[:300]}", flush=True)
    print(table(reports))
    return 1 if any(report.fault for report in reports) else 0


def warm_up() -> None:
    """Import and call what every child needs, once."""
    import torch

    import titanslab.evaluation.run_task
    import titanslab.evaluation.trace
    import titanslab.reading.session
    import titanslab.training.run  # noqa: F401
    from titanslab.runs.loading import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()


def repeat(kind: str, index: int, seed: int, folder: Path) -> int:
    """Run one input in this process."""
    prepare(folder)
    _settle(folder)
    os.environ["TITANS_DEBUG"] = "1"
    report = one(kind, index, seed, folder)
    print(f"{report.name}\n{report.verdict}, {report.seconds:.1f} s\n{report.fault or 'no fault'}")
    print(f"the files are in {folder / 'work' / f'{kind}-{index}'}")
    return 1 if report.fault else 0


def table(reports: list[Report]) -> str:
    """How the inputs of each kind ended."""
    kinds: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        kinds[report.kind].append(report)
    lines = [f"{'kind':10}{'inputs':>8}{'done':>8}{'refused':>9}{'faults':>8}{'longest':>10}"]
    for kind, found in kinds.items():
        count = Counter(report.verdict for report in found if not report.fault)
        faults, longest = sum(bool(report.fault) for report in found), max(report.seconds for report in found)
        lines.append(f"{kind:10}{len(found):8}{count[DONE]:8}{count[REFUSED]:9}{faults:8}{longest:8.1f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
