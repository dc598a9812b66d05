"""The candidates of `train_step` and `decode`: language models with equal numbers of parameters.

Our models (`lmm mal mag mac`) and the baselines with the same trunk (`attention-window attention-full`) come from
`TitansConfig.preset`. The MLP width of each model is then chosen so that all have the same number of parameters.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Missing

TITANS = ("lmm", "mal", "mag", "mac")
TRUNK = (*TITANS, "attention-window", "attention-full")

# Parameters of each size; tiny is that of the tiny MAC.
SIZES = {"tiny": 2.3e6, "10m": 10e6, "170m": 170e6, "340m": 340e6, "400m": 400e6, "760m": 760e6, "1.3b": 1.3e9}
SIZES["dim128"] = 1.6e6
# Changes of the preset tiny. 10m: heads of 64, tokens are bytes, and a window shorter than 512 tokens.
# dim128: chunks as long as segments.
CHANGES: dict[str, dict[str, Any]] = {
    "10m": {"hidden_size": 256, "num_hidden_layers": 6, "window_size": 256},
    "dim128": {"hidden_size": 128, "chunk_size": 64, "segment_len": 64},
}


@dataclass(frozen=True)
class ModelSetting:
    """One point of the measurement: size, length and training settings. `parameters` 0 = those of `SIZES`."""

    size: str
    tokens: int
    batch: int = 1
    parameters: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    compiled: bool = False
    fused_loss: bool = False
    checkpointing: bool = False
    backend: str = "auto"

    @property
    def label(self) -> str:
        return f"{self.size} T={self.tokens} batch={self.batch}"

    @property
    def target(self) -> int:
        return self.parameters or int(SIZES[self.size])


def titans_config(name: str, s: ModelSetting, **overrides: Any) -> Any:
    """`TitansConfig` of a candidate, with the MLP width of the preset."""
    from titanslab import TitansConfig

    values: dict[str, Any] = {"memory_backend": s.backend, "fused_loss": s.fused_loss}
    variant = "attention" if name.startswith("attention") else name
    if name == "attention-full":
        values["window_size"] = None
    preset = s.size
    if s.size in CHANGES:
        preset, values = "tiny", CHANGES[s.size] | values
    return TitansConfig.preset(preset, variant=variant, **values | overrides)


def fit_width(count: Callable[[int], int], target: int, step: int = 8) -> int:
    """MLP width, a multiple of `step`, with which a model has nearly `target` parameters.

    Raises:
        Missing: the model has more parameters without any MLP.
    """
    base, slope = 2 * count(step) - count(2 * step), (count(2 * step) - count(step)) / step
    width = round((target - base) / slope / step) * step
    if width < step:
        raise Missing(f"has {base:,} parameters without any MLP, more than the target of {target:,}")
    return width


def fitted_titans_config(name: str, s: ModelSetting) -> Any:
    """The config of a candidate with the MLP width that fits the target number of parameters."""
    from titanslab.models.cost import cost

    def count(width: int) -> int:
        return cost(titans_config(name, s, intermediate_size=width)).parameters

    return titans_config(name, s, intermediate_size=fit_width(count, s.target))


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _on_meta(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return count_parameters(make())


def llama_config(s: ModelSetting, width: int) -> Any:
    """Config of a Llama with the shape of our trunk."""
    from transformers import LlamaConfig

    ours = titans_config("attention-full", s)
    kernel = "sdpa"
    if s.device == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        kernel = "flash_attention_2"
    return LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=width,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        max_position_embeddings=max(2048, s.tokens),
        tie_word_embeddings=True,
        attn_implementation=kernel,  # type: ignore[call-arg]
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


class Training:
    """A model ready to train: `step()` is loss, backward and AdamW on one batch of random tokens.

    Args:
        s: the setting.
        model: the model, which is moved to the device.
        loss: computes the loss from the model and tokens `[B, T + 1]`; each candidate makes T predictions.
        vocab_size: number of tokens to draw from.
        note: description of the candidate for the report.
        flops: FLOPs of one forward pass by formula, or None.
    """

    def __init__(
        self,
        s: ModelSetting,
        model: nn.Module,
        loss: Callable[[nn.Module, Tensor], Tensor],
        vocab_size: int,
        note: str,
        flops: int | None = None,
    ) -> None:
        self.setting, self.note, self.flops = s, note, flops
        self.model = model.to(s.device).train()
        if s.checkpointing:
            if not getattr(model, "supports_gradient_checkpointing", False):
                raise Missing("has no gradient checkpointing")
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        self.parameters = count_parameters(model)
        generator = torch.Generator().manual_seed(s.seed)
        tokens = torch.randint(0, vocab_size, (s.batch, s.tokens + 1), generator=generator)
        self.tokens = tokens.to(s.device)
        if s.compiled:
            # variants share code; above this number of compiled forms torch would run it uncompiled
            torch._dynamo.config.recompile_limit = 64
            model = torch.compile(model)  # type: ignore[assignment]
        self._loss = lambda: loss(model, self.tokens)  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.losses: list[Tensor] = []

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.model.parameters())

    def move(self, device: str) -> None:
        """Move weights and optimizer state to a device, so that a GPU holds one candidate at a time."""
        self.model.to(device)
        for state in self.optimizer.state.values():
            for key, value in state.items():
                state[key] = value.to(device)

    def output(self) -> Tensor:
        """The loss with its graph."""
        if self.setting.dtype == "float32":
            return self._loss()
        with torch.autocast(self.setting.device, getattr(torch, self.setting.dtype)):
            return self._loss()

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.output()

    def step(self) -> Tensor:
        loss = self.output()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.detach())
        return loss.detach()


def _hugging_face_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    # the model shifts the labels, so the last of the T tokens has no prediction
    return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss


def causal_pairs_hidden(name: str, s: ModelSetting, config: Any) -> int:
    """FLOPs of masked pairs in full attention, which the cost model counts and a causal kernel does not compute."""
    if name != "attention-full":
        return 0
    return 2 * s.batch * config.num_hidden_layers * config.hidden_size * s.tokens**2


def build_titans(name: str, s: ModelSetting) -> Training:
    from titanslab import TitansForCausalLM
    from titanslab.models.cost import forward_flops

    config = fitted_titans_config(name, s)
    flops = forward_flops(config, s.batch, s.tokens) - causal_pairs_hidden(name, s, config)
    shape = f"{config.num_hidden_layers} blocks of {config.hidden_size}, MLP {config.intermediate_size}"
    with torch.device(s.device):
        model = TitansForCausalLM(config)
    return Training(s, model, _hugging_face_loss, config.vocab_size, shape, flops)


def build_llama(s: ModelSetting) -> Training:
    from transformers import LlamaForCausalLM

    width = fit_width(lambda w: _on_meta(lambda: LlamaForCausalLM(llama_config(s, w))), s.target)
    config = llama_config(s, width)
    note = f"transformers, {config._attn_implementation}, MLP {width}"
    return Training(s, LlamaForCausalLM(config), _hugging_face_loss, config.vocab_size, note)


def _needs_fla(s: ModelSetting, *packages: str) -> None:
    if s.device != "cuda":
        raise Missing(f"its kernels run on a GPU; this run is on {s.device}")
    absent = [p for p in ("fla", *packages) if importlib.util.find_spec(p) is None]
    if absent:
        raise Missing(f"not installed: {', '.join(absent)} (pip install flash-linear-attention mamba-ssm)")


def gated_deltanet_config(s: ModelSetting, width: int) -> Any:
    """fla's gated DeltaNet as its authors set it: keys have 3/4 of the width, values twice that."""
    from fla.models import GatedDeltaNetConfig

    ours = titans_config("attention-full", s)
    return GatedDeltaNetConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        head_dim=64,
        num_heads=max(1, ours.hidden_size * 3 // 4 // 64),
        intermediate_size=width,
        tie_word_embeddings=True,
    )


def build_gated_deltanet(s: ModelSetting) -> Training:
    _needs_fla(s)
    from fla.models import GatedDeltaNetForCausalLM

    width = fit_width(lambda w: _on_meta(lambda: GatedDeltaNetForCausalLM(gated_deltanet_config(s, w))), s.target, 64)
    config = gated_deltanet_config(s, width)
    model = GatedDeltaNetForCausalLM(config)
    return Training(s, model, _hugging_face_loss, config.vocab_size, f"fla kernels, MLP {width}")


def mamba2_config(s: ModelSetting, layers: int) -> Any:
    from fla.models import Mamba2Config

    ours = titans_config("attention-full", s)
    return Mamba2Config(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=layers,
        head_dim=64,
        num_heads=2 * ours.hidden_size // 64,
        tie_word_embeddings=True,
    )


def build_mamba2(s: ModelSetting) -> Training:
    _needs_fla(s, "mamba_ssm")
    from fla.models import Mamba2ForCausalLM

    # it has no MLP, so its depth is fitted to the target
    one = _on_meta(lambda: Mamba2ForCausalLM(mamba2_config(s, 1)))
    two = _on_meta(lambda: Mamba2ForCausalLM(mamba2_config(s, 2)))
    layers = max(1, round((s.target - one) / (two - one)) + 1)
    config = mamba2_config(s, layers)
    model = Mamba2ForCausalLM(config)
    return Training(s, model, _hugging_face_loss, config.vocab_size, f"fla with mamba-ssm, {layers} layers")


def _titans_pytorch_mac(s: ModelSetting, batch_size: int, note: str) -> Training:
    """titans-pytorch's MAC with the dim, depth, heads, chunk, segment, MLP and persistent tokens of our MAC."""
    try:
        from titans_pytorch import MemoryAsContextTransformer, MemoryMLP
    except ImportError as error:
        raise Missing(f"titans-pytorch: {error}; pip install 'titans-lab[bench]'") from error
    ours = fitted_titans_config("mac", s)
    head_dim = ours.memory_head_dim
    model = MemoryAsContextTransformer(
        num_tokens=ours.vocab_size,
        dim=ours.hidden_size,
        depth=ours.num_hidden_layers,
        segment_len=ours.segment_len,
        neural_memory_segment_len=ours.chunk_size,
        neural_memory_batch_size=batch_size or ours.chunk_size,
        num_persist_mem_tokens=ours.num_persistent_tokens,
        dim_head=ours.head_dim,
        heads=ours.num_attention_heads,
        ff_mult=1.5 * ours.intermediate_size / ours.hidden_size,
        num_residual_streams=1,
        neural_memory_model=MemoryMLP(dim=head_dim, depth=ours.memory_depth, expansion_factor=ours.memory_expansion),
        neural_memory_kwargs={"dim_head": head_dim, "heads": ours.num_memory_heads},
    )
    # the heads' start weights are expanded views of one tensor, and an optimizer cannot write to those
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def loss(module: nn.Module, tokens: Tensor) -> Tensor:
        return module(tokens, return_loss=True)

    return Training(s, model, loss, ours.vocab_size, note)


def build_titans_pytorch_mac(s: ModelSetting) -> Training:
    return _titans_pytorch_mac(
        s,
        0,
        "MemoryAsContextTransformer, neural_memory_segment_len = neural_memory_batch_size = our chunk, one residual "
        "stream; momentum and forgetting have one value per chunk",
    )


def build_titans_pytorch_mac_wide(s: ModelSetting) -> Training:
    return _titans_pytorch_mac(
        s,
        128,
        "the same with neural_memory_batch_size 128, as in its training script: gradients at weights up to 128 "
        "tokens old, which is another and cheaper function",
    )


PEERS: dict[str, Callable[[ModelSetting], Training]] = {
    "llama": build_llama,
    "gated-deltanet": build_gated_deltanet,
    "mamba2": build_mamba2,
    "titans-pytorch-mac": build_titans_pytorch_mac,
    "titans-pytorch-mac-128": build_titans_pytorch_mac_wide,
}
CANDIDATES = (*TRUNK, *PEERS)


def build(name: str, setting: ModelSetting) -> Training:
    """Build the candidate of that name.

    Raises:
        Missing: the candidate cannot run here.
        ValueError: unknown candidate or size.
    """
    if name not in CANDIDATES:
        raise ValueError(f"candidate must be one of {', '.join(CANDIDATES)}, got {name!r}")
    if setting.size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {setting.size!r}")
    torch.manual_seed(setting.seed)
    return PEERS[name](setting) if name in PEERS else build_titans(name, setting)
