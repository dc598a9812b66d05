"""Whether a graft leaves the outputs of a base as they are, for every causal language model of transformers.

    python -m benchmarks.graft_bases                   # all architectures
    python -m benchmarks.graft_bases llama gemma2      # some

A base is random, and has a width of 32 and two layers where its config allows it. Logits of two rows, logits with left
padding, and greedy generation are compared bit by bit, without a window and with one that holds all tokens. The result
of a base is "identical", the parts that differ, the message with which `graft()` refuses it, or the reason why it was
not made.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import titanslab
from benchmarks.output import new_report, transient
from titanslab import GraftConfig, MemoryConfig

WIDTH, LAYERS, HEADS, MLP, TOKENS, POSITIONS = 32, 2, 4, 48, 64, 256
MOST_PARAMETERS = 20_000_000
WINDOW = 64
# Values of the names under which configs keep sizes; a config gets those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "hidden_dim", "conv_dim"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"), HEADS
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "shared_intermediate_size"), MLP),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "head_dim", "sliding_window"), 8),
    "decoder_ffn_dim": MLP,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "vocab_size": TOKENS,
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def new_config(kind: str) -> Any:
    """A small config of an architecture."""
    usual = CONFIG_MAPPING[kind]()
    computed = {name for name in SIZES if isinstance(getattr(type(usual), name, None), property)}
    sizes = {name: value for name, value in SIZES.items() if hasattr(usual, name) and name not in computed}
    if kinds := list(dict.fromkeys(getattr(usual, "layer_types", None) or ())):
        sizes["layer_types"] = (kinds * LAYERS)[:LAYERS]
    return CONFIG_MAPPING[kind](**sizes)


def outputs(model: Any) -> dict[str, torch.Tensor]:
    """What is compared."""
    ids = torch.randint(3, TOKENS, (2, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        return {
            "logits": model(ids).logits,
            "logits with padding": model(ids, attention_mask=mask).logits[mask.bool()],
            "generation": model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0),
        }


def new_model(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def compare(kind: str) -> dict[str, str]:
    """The result of an architecture without and with a window."""
    try:
        config = new_config(kind)
        with torch.device("meta"):
            size = sum(p.numel() for p in new_model(config).parameters())
        if size > MOST_PARAMETERS:
            return {"not made": f"{size:,} parameters with the sizes that are set here"}
        wanted = outputs(new_model(config))
    except Exception as error:  # the sizes do not fit this architecture, or it does not run here
        return {"not made": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]}
    found = {}
    for name, window in (("no window", None), ("window", WINDOW)):
        memory = MemoryConfig(2, head_dim=8, chunk_size=4)
        try:
            model = titanslab.graft(new_model(config), GraftConfig(layers="all", window_size=window, memory=memory))
            other = [part for part, values in outputs(model).items() if not torch.equal(values, wanted[part])]
            found[name] = f"differs: {', '.join(other)}" if other else "identical"
        except ValueError as error:
            found[name] = f"refused: {error}"[:200]
        except Exception as error:
            found[name] = f"fails: {type(error).__name__}: {error}"[:200]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="architectures by their model_type; default: all causal ones")
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in benchmarks/results")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    kinds = given.kinds or [kind for kind in CONFIG_MAPPING if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    report = new_report("graft_bases", 0, torch.device("cpu"), {"kinds": given.kinds}, given.out)
    counts: Counter[str] = Counter()
    for number, kind in enumerate(kinds, start=1):
        transient(f"{number} of {len(kinds)}: {kind}")
        found = compare(kind)
        report.add({"kind": kind, **found})
        counts.update(f"{name}: {value.split(':')[0]}" if name != "not made" else name for name, value in found.items())
        print(f"{kind}: {'; '.join(f'{name}: {value}' for name, value in found.items())}", flush=True)
    print("; ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    report.finish()


if __name__ == "__main__":
    main()
