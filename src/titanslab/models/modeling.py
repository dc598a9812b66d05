"""`TitansModel` and `TitansForCausalLM`: blocks, head and losses, as Hugging Face models."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from titanslab.layers import RMSNorm, linear_cross_entropy
from titanslab.memory.padding import Padding
from titanslab.memory.state import own_storage
from titanslab.memory.transforms import transformed
from titanslab.models.block import TitansBlock
from titanslab.models.cache import CACHE, TitansCache, either, renamed
from titanslab.models.call import make_call, read_mask
from titanslab.models.config import TitansConfig
from titanslab.models.losses import block_loss, write_loss
from titanslab.models.pretrained import TitansPreTrainedModel
from titanslab.models.read import Reads


@dataclass
class TitansOutput(BaseModelOutputWithPast):
    """Outputs of `TitansModel`.

    Args:
        memory_stats: on request, a dict for each block: theta, eta, alpha and "write" `[B, T, H, 1 or L]` and "loss"
            `[B, T, H]` of its memory, as `NeuralMemory.forward` returns them, 0 at padding, and "persistent_write" for
            the persistent tokens where a document starts. Empty for a block without a memory.
    """

    memory_stats: tuple[dict[str, Tensor], ...] | None = None


@dataclass
class TitansCausalLMOutput(CausalLMOutputWithPast):
    """Outputs of `TitansForCausalLM`; `memory_stats` as in `TitansOutput`."""

    memory_stats: tuple[dict[str, Tensor], ...] | None = None


class TitansModel(TitansPreTrainedModel, Reads):
    """Embedding, blocks and final norm: `input_ids [B, T]` to hidden states `[B, T, hidden_size]`."""

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TitansBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: TitansCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        cache: TitansCache | None = None,
        output_memory_stats: bool = False,
        **kwargs: Any,
    ) -> "TitansOutput":
        """Read tokens, after those of `past_key_values` where given.

        Args:
            input_ids: int64 `[B, T]`; or give `inputs_embeds [B, T, hidden_size]` in its place.
            attention_mask: `[B, T]`, or `[B, past + T]` of which the last T count; 0 = padding, anywhere in a
                row. It is as if padded tokens were not there; their outputs are 0.
            past_key_values: a `TitansCache` to continue from; it is updated in place.
            cache: the same, under the name it has from transformers 5.24 on.
            use_cache: return a cache; default `config.use_cache`, in training False.
            document_ids: int64 `[B, T]`; where the id changes along a row, a document starts: memory,
                convolutions, segments, attention and positions begin anew.
            output_memory_stats: return `memory_stats` too, see `TitansOutput`.
        """
        check_arguments(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self._embed(input_ids) if inputs_embeds is None else self._embedded(inputs_embeds)
        batch, tokens = x.shape[:2]
        if tokens == 0:
            raise ValueError(
                f"input_ids must hold at least one token per row, got shape {list(x.shape[:2])}; generate() takes a "
                "prompt given with a cache for the whole text, so give it new tokens with cache.continued()"
            )
        cache = past_key_values if cache is None else either(past_key_values, cache)
        if cache is not None:
            self._check_cache(cache, batch)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = TitansCache(self.config)
            cache.bind(self)
        keep = cache is not None

        padding = read_mask(attention_mask, batch, tokens, 0 if cache is None else cache.columns)
        restore: Callable[[Tensor], Tensor] = (lambda t: t) if padding is None else padding.restore
        if padding is not None:
            x = padding.compact(x)
        reset, last_document = self._documents(document_ids, cache, padding, (batch, tokens))
        call = make_call(
            self.config,
            x,
            lengths=None if padding is None else padding.lengths,
            reset=reset,
            start=None if cache is None else cache.position,
            learn=cache is None or cache.learn,
            write_scale=cache.write_scale if cache is not None and cache.learn else 1.0,
            stats={} if output_memory_stats else None,
        )
        stats: list[dict[str, Tensor]] = []
        hidden: tuple[Tensor, ...] = (x,)
        for i, block in enumerate(self.layers):
            before = None if cache is None else cache.states[i]
            if before is not None and before.keys is not None and before.keys.dtype != x.dtype:
                # of the same model in another precision, if autocast has not made them so
                before = before if torch.is_autocast_enabled(x.device.type) else before.in_dtype(x.dtype)
            x, state = block(x, call, before, keep)
            if cache is not None and state is not None:
                cache.states[i] = state.map(own_storage)
            if output_hidden_states:
                hidden = (*hidden, x)
            if call.stats is not None:
                stats.append({n: t if n == "persistent_write" else restore(t) for n, t in call.stats.items()})
                call.stats.clear()
        x = restore(self.norm(x))
        if cache is not None:
            cache.position, cache.document = call.end, last_document
            cache.columns += tokens
        return TitansOutput(
            last_hidden_state=x,
            hidden_states=(*map(restore, hidden[:-1]), x) if output_hidden_states else None,
            memory_stats=tuple(stats) if output_memory_stats else None,
            **{CACHE: cache if use_cache else None},  # type: ignore[arg-type]
        )

    def _embed(self, ids: Tensor | None) -> Tensor:
        """Embeddings of `ids [B, T]`; ValueError for other shapes, dtypes and ids outside the vocabulary."""
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
            got = f"{list(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"input_ids must be int64 [B, T], got {got}; one row: ids.unsqueeze(0)")
        try:
            return self.embed_tokens(ids)
        except IndexError:  # on a CPU; a GPU reports it in its own way
            raise ValueError(
                f"input_ids must be within the vocabulary 0..{self.embed_tokens.num_embeddings - 1}, got "
                f"{int(ids.min())}..{int(ids.max())}; is it the tokenizer of this model?"
            ) from None

    def _embedded(self, x: Tensor) -> Tensor:
        """The given embeddings; ValueError for other shapes and dtypes than the model's."""
        width, weight = self.config.hidden_size, self.embed_tokens.weight
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] != width:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"inputs_embeds must have shape [B, T, {width}], got {got}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"inputs_embeds is {x.dtype}, the model {weight.dtype}; cast it: embeds.to(model.dtype)")
        return x

    def _check_cache(self, cache: object, batch: int) -> None:
        if not isinstance(cache, TitansCache):
            raise ValueError(
                f"past_key_values must be a TitansCache, got {type(cache).__name__}; make one with "
                "TitansCache(model.config), or pass none"
            )
        cache.bind(self)
        if cache.batch_size not in (-1, batch):
            raise ValueError(
                f"past_key_values holds {cache.batch_size} rows, the input has {batch}; for beams, or several "
                "sequences of a prompt, give generate() a cache after batch_repeat_interleave(how_many)"
            )

    def _documents(
        self, ids: Tensor | None, cache: TitansCache | None, padding: Padding | None, shape: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """First tokens of documents `[B, T]`, and the id each row ends with."""
        last = None if cache is None else cache.document
        if ids is None:
            return None, last
        if not isinstance(ids, Tensor) or tuple(ids.shape) != shape:
            got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"document_ids must have shape {list(shape)} like the tokens, got {got}")
        if padding is not None:
            ids = padding.compact(ids)
        first = torch.zeros_like(ids[:, :1], dtype=torch.bool) if last is None else ids[:, :1] != last[:, None]
        reset = torch.cat((first, ids[:, 1:] != ids[:, :-1]), dim=1)
        if padding is None:
            return reset, ids[:, -1]
        end = ids.gather(1, (padding.lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        return reset, end if last is None else torch.where(padding.lengths > 0, end, last)


class TitansForCausalLM(TitansPreTrainedModel, Reads, GenerationMixin):
    """A Titans model with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TitansConfig) -> None:
        super().__init__(config)
        self.model = TitansModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes a TitansCache

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate tokens as every model of transformers does, after the `TitansCache` in `past_key_values` or `cache`.

        Raises:
            ValueError: a cache with `use_cache=False`, with which every step would read all tokens again, or a cache
                that has read the whole prompt.
        """
        kwargs = renamed(kwargs)
        if kwargs.get(CACHE) is not None:
            if kwargs.get("use_cache") is False:
                raise ValueError("use_cache=False and a cache do not go together; leave one of them out")
            kwargs["use_cache"] = True  # whatever a saved config says
            prompt = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
            read = kwargs[CACHE].get_seq_length()
            if isinstance(prompt, Tensor) and prompt.dim() == 2 and 0 < prompt.shape[1] == read:
                raise ValueError(
                    f"the prompt has {read} tokens, and the cache has read {read}: no token is left from which to "
                    "generate; pass the text with new tokens, or new tokens alone with cache.continued()"
                )
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As usual; new tokens belong to the document the prompt ended in."""
        kwargs["inputs_embeds"] = inputs_embeds  # generate() looks for this name in the signature
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc,arg-type]
        check_left_padding(inputs)
        ids = inputs.get("document_ids")
        if ids is not None:
            cache = inputs.get(CACHE)
            if cache is not None and cache.get_seq_length() >= ids.shape[1]:
                del inputs["document_ids"]
            else:
                given = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
                new = input_ids.shape[1] - ids.shape[1]
                ids = torch.cat((ids, ids[:, -1:].expand(-1, max(new, 0))), dim=1)
                inputs["document_ids"] = ids[:, -given.shape[1] :]
        return inputs

    def _check_checkpointing(self) -> None:
        """ValueError where the write cost would have no gradient: reentrant checkpoints return outputs alone."""
        block = self.model.layers[0]
        how: Any = getattr(block, "_gradient_checkpointing_func", None)
        if getattr(block, "gradient_checkpointing", False) and getattr(how, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "memory_write_cost has no gradient under gradient checkpointing with use_reentrant=True; give "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: TitansCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        document_ids: Tensor | None = None,
        cache: TitansCache | None = None,
        block_targets: Tensor | None = None,
        **kwargs: Any,
    ) -> TitansCausalLMOutput:
        """Next-token logits, and the loss where labels are given; the rest as in `TitansModel.forward`.

        Args:
            labels: int64 `[B, T]`, the tokens themselves (shifted inside), -100 for tokens without a loss.
            logits_to_keep: number of last tokens that get logits, 0 = all; or a tensor of positions.
            block_targets: int64 `[B, T, N]`, with labels: the tokens that the outputs of the first N blocks predict,
                through the final norm and the head; not shifted, -100 = no target. In training the loss holds
                their mean cross entropy too: a step of an answer is learned in the block meant for it. OURS.
            kwargs: `output_hidden_states` and `output_memory_stats` of `TitansModel.forward`; `num_items_in_batch`, the
                divisor of the summed loss; `write_cost_share`, a factor of `config.memory_write_cost`.

        With `config.fused_loss`, in training and with labels, the loss is computed in chunks of tokens and
        `logits` is None. With `config.memory_write_cost`, in training and with labels, the loss holds that too.
        """
        remembers = self.config.variant != "attention"
        with_stats = kwargs.pop("output_memory_stats", False)
        priced = remembers and self.training and labels is not None and self.config.memory_write_cost > 0
        hinted = self.training and labels is not None and block_targets is not None
        with_hidden, share = kwargs.pop("output_hidden_states", None), kwargs.pop("write_cost_share", 1.0)
        if priced and torch.is_grad_enabled():
            self._check_checkpointing()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            output_hidden_states=with_hidden or hinted,
            output_memory_stats=with_stats or priced,
            return_dict=True,
            **kwargs,
        )
        hidden, items = outputs.last_hidden_state, kwargs.get("num_items_in_batch")
        if labels is not None:
            check_labels(labels, hidden, self.lm_head, logits_to_keep)
        elif remembers and self.training and self.config.memory_write_cost > 0 and not with_stats:
            warnings.warn(
                "memory_write_cost adds nothing in a call without labels, as Trainer makes with label_smoothing_factor "
                "or compute_loss_func; leave those out, set memory_write_cost=0, or add write_loss to your own loss",
                stacklevel=2,
            )
        logits = loss = None
        if labels is not None and self.training and self.config.fused_loss:
            targets = F.pad(labels[:, 1:], (0, 1), value=-100).to(hidden.device).flatten()
            loss = linear_cross_entropy(hidden.flatten(0, 1), self.lm_head, targets, num_items=items)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        extra: list[Tensor] = []
        if priced:
            mean = write_loss(outputs.memory_stats, attention_mask, self.config.memory_write_floor)
            extra.append(share * self.config.memory_write_cost * mean)
        if hinted and block_targets is not None:
            extra.append(block_loss(outputs.hidden_states, self.model.norm, self.lm_head, block_targets))
        if loss is not None and labels is not None:
            for part in extra:
                if items is not None:  # this batch's share, as of the loss
                    part = part * (labels[:, 1:] != -100).sum() / items
                loss = loss + part.to(loss.dtype)
        return TitansCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states if with_hidden else None,
            memory_stats=outputs.memory_stats if with_stats else None,
            **{CACHE: getattr(outputs, CACHE)},
        )


def check_labels(labels: Tensor, hidden: Tensor, head: nn.Module, logits_to_keep: int | Tensor) -> None:
    """ValueError for labels that do not fit the outputs `hidden [B, T, hidden]`; on a CPU also for unknown tokens."""
    shape = list(hidden.shape[:2])
    if not isinstance(labels, Tensor) or list(labels.shape) != shape:
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must have shape {shape} like the tokens, got {got}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}; cast them: labels.long()")
    if isinstance(logits_to_keep, Tensor) or logits_to_keep:
        raise ValueError("labels need the logits of all tokens, and logits_to_keep leaves some out; give one of them")
    size, looks = getattr(head, "out_features", None), not (torch.compiler.is_compiling() or transformed())
    if size is not None and looks and labels.device.type == "cpu" and labels.numel():
        least, most = int(labels.masked_fill(labels == -100, 0).min()), int(labels.max())
        if least < 0 or most >= size:
            raise ValueError(f"labels must be -100 or within the vocabulary 0..{size - 1}, got {least}..{most}")


def check_arguments(kwargs: dict[str, Any]) -> None:
    """Raise for arguments that would change nothing though they look as if they did."""
    for name in ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is not an argument of Titans models; pass document_ids to mark packed documents")
    if kwargs.get("position_ids") is not None:
        raise ValueError(
            "position_ids is not an argument of Titans models: positions follow from attention_mask and "
            "document_ids; pass document_ids to mark packed documents"
        )
    if kwargs.get("output_attentions"):
        raise ValueError("output_attentions=True is not supported: attention weights are never formed")


def check_left_padding(inputs: dict[str, Any]) -> None:
    """ValueError where a prompt for generation ends in padding, whose outputs say nothing of the next token."""
    mask = inputs.get("attention_mask")
    given = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
    if not isinstance(mask, Tensor) or mask.dim() != 2 or given.shape[1] == 1:
        return
    if not torch.compiler.is_compiling() and not bool((mask[:, -1] != 0).all()):
        raise ValueError("attention_mask ends in padding; pad prompts on the left: tokenizer.padding_side = 'left'")
