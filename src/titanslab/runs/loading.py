"""A model and its tokenizer, opened from a folder (a run, a checkpoint, any Hugging Face causal model) on a device."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from titanslab.denormals import start_threads
from titanslab.documents import checked, read_json, reason
from titanslab.runs.bases import base_folder, base_of, is_graft
from titanslab.runs.checkpoints import last_complete
from titanslab.runs.weights import check_model_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
logger = logging.getLogger(__name__)


class _Config(Struct, rename={"attention": "attn_implementation", "own_attention": "_attn_implementation"}):
    """Keys of every config.json that transformers uses without a check."""

    attention: str | dict[str, str] | None = None
    own_attention: str | dict[str, str] | None = None
    dtype: str | dict[str, str] | None = None
    torch_dtype: str | dict[str, str] | None = None
    architectures: list[str] | None = None
    transformers_version: str | None = None
    quantization_config: dict[str, Any] | None = None
    auto_map: dict[str, Any] | None = None


Id = Annotated[int, Meta(ge=0, lt=1 << 31)]
Size = Annotated[int, Meta(ge=0, lt=1 << 31)]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Generation(Struct):
    """Keys of generation_config.json that `generate()` uses without a check."""

    bos_token_id: Id | None = None
    eos_token_id: Id | list[Id] | None = None
    pad_token_id: Id | None = None
    max_new_tokens: Size | None = None
    max_length: Size | None = None
    min_length: Size | None = None
    min_new_tokens: Size | None = None
    num_beams: Size | None = None
    top_k: Size | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None


def open_model(name: str | Path, device: str | torch.device = "auto") -> tuple[Any, Any]:
    """A causal language model in evaluation mode and its tokenizer, for a command, with other libraries kept quiet.

    Args:
        name: the folder of a run, a checkpoint or a saved model.
        device: the device of the model; "auto" is a GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError, ValueError: as `load_model`, `load_model_tokenizer` and `pick_device`; the name and the
            device are checked before anything is read.
    """
    find_model_folder(name)
    place = pick_device(device)
    prepare_process()
    model: Any = load_model(name)
    return model.to(place), load_model_tokenizer(name)


def pick_device(name: str | torch.device) -> Any:
    """The torch device of a name; "auto" is a GPU where there is one. ValueError for one that is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"--device {name!r} cannot be used; here: auto, {', '.join(here)}") from error
    return device


def quiet_libraries() -> None:
    """Let torch, transformers and accelerate report errors alone; no progress bars of theirs, no telemetry."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|accelerate)\b")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def prepare_process() -> None:
    """Set up the process of a command: `quiet_libraries`, and the threads of torch, before its first operation."""
    start_threads()
    quiet_libraries()


def find_model_folder(name: str | Path) -> Path:
    """The folder with config.json and weights, or of a graft: `name` itself, or the last whole checkpoint of its run.

    Raises:
        FileNotFoundError: the folder does not exist. ValueError: it holds no model.
    """
    path = Path(name).expanduser()
    if not str(name):
        raise ValueError("the name of the model is empty; give a run folder or a saved model")
    if not path.exists():
        raise FileNotFoundError(f"model {str(name)!r} does not exist (looked for {path.absolute()})")
    if path.is_file():
        raise ValueError(f"model {str(name)!r} is a file; give the folder that holds config.json and the weights")
    if (path / "config.json").exists() or is_graft(path):
        return path
    checkpoint = last_complete(path / "checkpoints")
    if checkpoint is None:
        hint = "the run there has no checkpoint yet" if (path / "recipe.toml").exists() else "it holds no config.json"
        raise ValueError(f"model folder {str(name)!r} is not a model: {hint}; give a run folder or a saved model")
    return checkpoint


def load_model(name: str | Path, **config_changes: Any) -> PreTrainedModel:
    """Load a causal language model from a folder, in evaluation mode and in the dtype it was saved in.

    A run that has not finished gives its newest checkpoint, with a warning in the log. Only safetensors are read and
    no code from the folder is run. The folder of a graft gives its base with the memories. `config_changes` are fields
    of the config with other values than in the folder.

    Raises:
        FileNotFoundError: the folder, or the base of a graft, does not exist.
        ValueError: it is not a model, or its weights are cut off, missing or of other shapes; the message is one line.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    if is_forecaster(config):
        raise ValueError(
            f"the model in {str(name)!r} forecasts series (model_type {config.model_type!r}), and a language model is "
            "needed here; see titans evaluate forecasting"
        )
    folder = find_model_folder(name)
    if is_graft(folder):
        from titanslab.graft import load_graft

        base = base_of(folder)
        model: Any = load_base(base, **config_changes)
        return load_graft(folder, model)
    return load_weights(name, AutoModelForCausalLM, **config_changes)


def load_base(name: str, **config_changes: Any) -> PreTrainedModel:
    """`load_model` for a base of a graft, which may be a name on the hub; the model is known by that name.

    Raises:
        ValueError: the base has a graft already.
    """
    folder = base_folder(name)
    if folder.exists() and is_graft(find_model_folder(folder)):
        raise ValueError(f"base {name!r} has a graft already; give its base, {base_of(find_model_folder(folder))!r}")
    model: Any = load_model(folder, **config_changes)
    model.config._name_or_path = str(folder.resolve()) if Path(name).expanduser().exists() else name
    return model


def load_forecaster(name: str | Path, **config_changes: Any) -> PreTrainedModel:
    """Load a forecasting model from a folder as `load_model` loads a language model; errors as there, and below."""
    from transformers import AutoModelForTimeSeriesPrediction

    forecaster_config(name)
    return load_weights(name, AutoModelForTimeSeriesPrediction, **config_changes)


def forecaster_config(name: str | Path) -> Any:
    """The config of the forecasting model in a folder; ValueError for a model of another kind."""
    config = load_config(name)
    if not is_forecaster(config):
        raise ValueError(
            f"the model in {str(name)!r} has model_type {config.model_type!r}, which does not forecast; train one from "
            "a recipe with a section [series]"
        )
    return config


def is_forecaster(config: PreTrainedConfig) -> bool:
    """Whether a config is that of a forecasting model."""
    from titanslab.models.forecasting_config import TitansForecastingConfig
    from titanslab.models.series_config import SeriesConfig

    return isinstance(config, TitansForecastingConfig | SeriesConfig)


def load_weights(name: str | Path, kind: Any, *, new: tuple[str, ...] = (), **config_changes: Any) -> PreTrainedModel:
    """`load_model` for the models of an Auto class, or of a class of models, of transformers.

    Args:
        kind: the class whose `from_pretrained` is called.
        new: beginnings of the names of parameters that the folder may lack or have in other shapes; they are drawn.
    """
    folder = find_model_folder(name)
    if folder != Path(name).expanduser():
        logger.warning("model %r is a run that has not finished; its newest checkpoint %s is loaded", str(name), folder)
    config = load_config(folder, **config_changes)
    check_model_files(folder, config)
    if (manner := folder / "generation_config.json").is_file():
        read_json(manner, _Generation, fix="correct it, or delete it for the settings of transformers", finite=False)
    try:
        loaded: Any = kind.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE
        )
    except Exception as error:
        cut = type(error).__name__ == "SafetensorError"
        fix = "; are the weights whole? Copy or save them again" if cut else ""
        raise ValueError(f"the model in {str(folder)!r} cannot be loaded: {_one_line(error)}{fix}") from error
    model, report = loaded
    wrong = (key for key in report.get("mismatched_keys", ()) if not str(key[0]).startswith(new or ("\0",)))
    if other := sorted(wrong, key=str):
        key, saved, wanted = other[0]
        raise ValueError(
            f"the model in {str(folder)!r} cannot be loaded: {len(other)} of its weights have other shapes than "
            f"config.json says; {key} is {list(saved)}, not {list(wanted)}; they belong to different models"
        )
    if missing := sorted(k for k in map(str, report.get("missing_keys", ())) if not k.startswith(new or ("\0",))):
        raise ValueError(
            f"the weights in {str(folder)!r} lack {len(missing)} parameters of the model, {missing[0]} first; "
            "the checkpoint is incomplete or belongs to another config"
        )
    return model.eval()


def load_config(name: str | Path, **changes: Any) -> PreTrainedConfig:
    """The config of the model in a folder, with changes; no weights are read. Raises the errors of `load_model`."""
    folder = find_model_folder(name)
    if is_graft(folder):
        folder = find_model_folder(base_folder(base_of(folder)))
    return read_config(folder / "config.json", **changes)


def read_config(file: Path, **changes: Any) -> PreTrainedConfig:
    """The config in a JSON file, with changes; ValueError in one line where it cannot be used."""
    from transformers import AutoConfig

    import titanslab.models.modeling
    from titanslab.models.config import WINDOWED

    values = read_json(file, dict[str, Any], finite=False)
    if not isinstance(values.get("model_type"), str):
        raise ValueError(f"{str(file)!r} names no model_type; it is not a model's config")
    if values["model_type"] in WINDOWED:
        import titanslab.models.windowed  # noqa: F401  registers these two
    checked(values, _Config, str(file))
    try:
        config, unknown = AutoConfig.from_pretrained(file, return_unused_kwargs=True, **SAFE, **changes)
    except Exception as error:
        raise ValueError(f"the config in {str(file)!r} cannot be loaded: {_one_line(error)}") from error
    if wrong := sorted(unknown.keys() & changes.keys()):
        raise ValueError(f"the config in {str(file)!r} has no field {wrong[0]!r}")
    return config


def load_model_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model, or beside the base of a graft; ValueError where there is none."""
    from titanslab.data import load_tokenizer

    folder = find_model_folder(name)
    if is_graft(folder) and not any((folder / file).exists() for file in TOKENIZER_FILES):
        folder = base_folder(base_of(folder))
    return load_tokenizer(str(folder))


def _one_line(error: BaseException) -> str:
    kind, text = type(error).__name__, reason(error)
    return kind if text == kind else f"{kind}: {text}"
