"""How long the command takes to start, in CPU seconds, beside the imports that it cannot do without.

    python -m benchmarks.startup --model checkpoints/niah-mac

Help, version and usage errors stand beside `import typer, rich`; `titans generate` and `titans ask` of one token beside
torch and the model classes of transformers. Each is the fastest of several processes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = ["-m", "titanslab.cli"]
LIBRARIES = "import typer, rich"
CLASSES = "import torch; from transformers import AutoTokenizer, GenerationMixin, LlamaForCausalLM"


def cpu_seconds(words: list[str], times: int) -> float:
    """The fewest CPU seconds of `times` runs of Python with these arguments."""
    seconds = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def measure(model: str, times: int) -> dict[str, dict[str, float]]:
    """Seconds of each command, and their ratio to those of the imports it needs."""
    with tempfile.TemporaryDirectory() as folder:
        memory, text = Path(folder) / "a.memory", Path(folder) / "a.txt"
        text.write_text("The river ran under the old bridge. " * 20)
        reading = [*COMMAND, "read", str(text), "--model", model, "--save", str(memory)]
        subprocess.run([sys.executable, *reading], check=True, capture_output=True)
        generate, one = ["generate", "--model", model, "--prompt", "The"], ["--max-new-tokens", "1"]
        groups = [
            (LIBRARIES, [["--help"], ["--version"], ["trian"], ["train", "--nosuch"]]),
            (CLASSES, [[*generate, *one], ["ask", "--memory", str(memory), "The", *one]]),
        ]
        found = {}
        for imports, commands in groups:
            needed = cpu_seconds(["-c", imports], times)
            found[imports] = {"seconds": round(needed, 3), "ratio": 1.0}
            for words in commands:
                seconds = cpu_seconds([*COMMAND, *words], times)
                found[f"titans {words[0]}"] = {"seconds": round(seconds, 3), "ratio": round(seconds / needed, 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="checkpoints/niah-mac", help="a saved Titans model")
    parser.add_argument("--times", type=int, default=3, help="processes of each kind; the fastest counts")
    parsed = parser.parse_args()
    print(json.dumps(measure(parsed.model, parsed.times), indent=1))


if __name__ == "__main__":
    main()
