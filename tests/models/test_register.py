"""Auto classes know the models in whatever order transformers and titanslab are imported."""

import subprocess
import sys

import pytest

from titanslab import TitansConfig, TitansForCausalLM
from titanslab.models.register import AUTO

LOAD = "print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__)"
ORDERS = {
    "titanslab first": f"import titanslab\nfrom transformers import AutoModelForCausalLM\n{LOAD}",
    "transformers first": f"import transformers, titanslab\nfrom transformers import AutoModelForCausalLM\n{LOAD}",
    "class first": f"from transformers import AutoModelForCausalLM\nimport titanslab\n{LOAD}",
    "config first": f"from transformers import AutoConfig\nimport titanslab\n"
    f"AutoConfig.from_pretrained(folder)\nfrom transformers import AutoModelForCausalLM\n{LOAD}",
    "llama first": f"from transformers import LlamaForCausalLM, Trainer\nimport titanslab\n"
    f"from transformers import AutoModelForCausalLM\n{LOAD}",
    "memory first": f"from titanslab import NeuralMemory\nfrom transformers import AutoModelForCausalLM\n{LOAD}",
    "pipeline": "import titanslab\nfrom transformers import pipeline\n"
    "print(type(pipeline('text-generation', folder).model).__name__)",
    "from a config": "import titanslab\nc = titanslab.TitansConfig.preset('tiny', num_hidden_layers=1)\n"
    "from transformers import AutoModelForCausalLM\nprint(type(AutoModelForCausalLM.from_config(c)).__name__)",
    "a model first": "import titanslab\nm = titanslab.TitansForCausalLM.from_pretrained(folder)\n"
    f"from transformers import AutoModelForCausalLM\n{LOAD}",
    "probed": f"import titanslab\nfrom importlib.util import find_spec\nassert find_spec({AUTO!r}) is not None\n"
    f"from transformers import AutoModelForCausalLM\n{LOAD}",
    "in threads": "import titanslab, transformers\nfrom concurrent.futures import ThreadPoolExecutor\n"
    "def load(_):\n    from transformers import AutoConfig\n    return AutoConfig.from_pretrained(folder)\n"
    "list(ThreadPoolExecutor(4).map(load, range(4)))\n"
    f"from transformers import AutoModelForCausalLM\n{LOAD}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from titanslab.data import byte_tokenizer

    path = tmp_path_factory.mktemp("auto") / "model"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    TitansForCausalLM(TitansConfig.preset("tiny", **sizes)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_models(order, folder):
    assert run(f"folder = {str(folder)!r}\n{ORDERS[order]}") == "TitansForCausalLM\n"


def test_import_loads_neither_torch_nor_transformers():
    assert run("import sys, titanslab\nprint({'torch', 'transformers', 'numpy'} & sys.modules.keys())") == "set()\n"


def test_the_module_of_transformers_keeps_its_own_loader():
    program = f"""
import inspect, sys, titanslab
from transformers import AutoConfig
module = sys.modules[{AUTO!r}]
print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
print(any(type(finder).__module__ == 'titanslab.models.register' for finder in sys.meta_path))
print('class AutoConfig' in inspect.getsource(module))
"""
    assert run(program) == "SourceFileLoader SourceFileLoader\nFalse\nTrue\n"
