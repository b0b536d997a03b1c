"""Programs over a Hugging Face causal LM: the whole model, or one pipeline stage of it.

Programs borrow the model's own modules, so parameter names stay Hugging Face's and nothing is copied. No attention
mask is built: packed rows are kept apart by `attention`, padded rows by causal attention alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tau2_lightning.errors import ConfigError, Violation

from .collectives import gather_sequence
from .hf_files import ModelFiles, ShardedLoader, covers, meta_model
from .inputs import TokenInputs
from .logprobs import scatter, token_logprobs
from .mesh import Mesh
from .tensor_parallel import vocab_start

# Families whose decoder layers we know how to split; their logits are lm_head(hidden states) and nothing else.
SPLITTABLE = ("qwen2", "qwen3")
# Families of which we only use that the logits are lm_head(hidden states).
PLAIN_HEAD = (*SPLITTABLE, "qwen3_moe", "llama", "mistral")
# How much of a dialogue is the agent's own, of what `head_load` takes for granted: .1 to .4 in tau2's domains.
TRAINED = 0.3


def load_causal_lm(source: str | Path | nn.Module) -> nn.Module:
    """A transformers causal LM in float32 from a Hugging Face folder, or ``source`` itself when already built.

    Raises ConfigError when the folder is missing.
    """
    if isinstance(source, nn.Module):
        model: Any = source
    else:
        from transformers import AutoModelForCausalLM

        if not (Path(source) / "config.json").is_file():
            raise ConfigError([Violation("actor.path", str(source), "no config.json there", "Give a model folder")])
        model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    return model


def open_model(source: str | Path | nn.Module, mesh: Mesh) -> tuple[Any, ShardedLoader | None]:
    """A causal LM, and what fills it when it comes without memory: on several processes none reads what it won't keep.

    Folders that the sharded reading does not know (other families, other formats, other tensor names) are loaded whole
    by transformers. Raises ConfigError when the folder is missing.
    """
    if isinstance(source, nn.Module) or mesh.device_mesh is None or not (Path(source) / "config.json").is_file():
        return load_causal_lm(source), None
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(str(source))
    files = ModelFiles(Path(source))
    model = meta_model(config, mesh.device) if config.model_type in PLAIN_HEAD else None
    if model is None or not covers(files, model):
        files.close()
        return load_causal_lm(source), None
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    model.config.use_cache = False
    return model, ShardedLoader(files, mesh.device, mesh.shard)


def can_split(config: Any, *, tensor: bool = True) -> bool:
    """Whether this model's layers may be split over p and c, and with ``tensor`` also over t.

    Known families without sliding-window layers; the tensor-parallel plan does not know mixtures of experts.
    """
    families = SPLITTABLE if tensor else (*SPLITTABLE, "qwen3_moe")
    return config.model_type in families and not _slides(config)


def can_pack(config: Any) -> bool:
    """Whether rows of this model may be packed side by side: its attention must be ours, and whole."""
    return config.model_type in PLAIN_HEAD and not _slides(config)


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))


def can_exchange(model: Any) -> bool:
    """Whether c may cut the sequence of a whole model: its attention is transformers' interface and nothing on top."""
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    return bool(getattr(model, "_supports_attention_backend", False)) and not capped and not _slides(model.config)


def is_tied(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


class TokenHead(nn.Module):
    """lm_head applied at the trained positions only. Borrows lm_head; the vocabulary may be split over ``group``."""

    def __init__(self, lm_head: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.lm_head: Any = lm_head
        self.group = group

    def forward(self, hidden: Tensor, labels: Tensor, loss_mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """``hidden`` [B, T, H] -> log-probs and entropy [B, T] float32, zero outside ``loss_mask``."""
        logits = self.lm_head(hidden[loss_mask])
        start = vocab_start(self.lm_head.weight) if self.group is not None else 0
        logprobs, entropy = token_logprobs(logits, labels[loss_mask], temperature, vocab_start=start, group=self.group)
        return scatter(logprobs, loss_mask), scatter(entropy, loss_mask)


class ContextSlice:
    """This context rank's slice of a sequence."""

    def __init__(self, mesh: Mesh) -> None:
        self.group, self.rank, self.size = mesh.group("cp"), mesh.coordinate("cp"), mesh.spec.c

    def of(self, x: Tensor) -> Tensor:
        """The slice of [B, T]."""
        return x if self.group is None else x.chunk(self.size, dim=1)[self.rank]


class WholeModel(nn.Module):
    """All layers in one program: token ids in, log-probs and entropy out. Context ranks compute a slice each."""

    def __init__(self, model: Any, mesh: Mesh) -> None:
        super().__init__()
        self.causal_lm, self.context = model, ContextSlice(mesh)
        self.plain_head = model.config.model_type in PLAIN_HEAD
        head = model.get_output_embeddings() if self.plain_head else nn.Identity()
        self.head = TokenHead(head)

    def forward(self, inputs: TokenInputs, temperature: float) -> Tensor:
        """Log-probs and entropy, ``inputs.shape`` x 2 float32."""
        own, extra = self.context.of, dict[str, Any]()
        if inputs.segments is not None or self.context.group is not None:
            # Whole padded rows start at 0 anyway; their position ids would make transformers look for packed documents.
            extra["position_ids"] = own(inputs.position_ids)
        if inputs.segments is not None:
            extra["segments"] = inputs.segments
        if self.plain_head:
            backbone = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
            hidden = backbone(input_ids=own(inputs.input_ids), use_cache=False, **extra).last_hidden_state
        else:
            # Families that scale or cap their logits do it in their own forward; trust only that.
            hidden = self.causal_lm(input_ids=own(inputs.input_ids), use_cache=False, **extra).logits
        outputs = torch.stack(self.head(hidden, own(inputs.labels), own(inputs.loss_mask), temperature), -1)
        return gather_sequence(outputs, self.context.group, summed=False)


class OwnedLayers(nn.Module):
    """The parameters one pipeline rank owns, under their Hugging Face names (layers keyed by global index)."""

    def __init__(self, causal_lm: Any, layers: list[int], first: bool, last: bool) -> None:
        super().__init__()
        self.config = causal_lm.config
        self.model: Any = nn.Module()
        if first:
            self.model.embed_tokens = causal_lm.model.embed_tokens
        self.model.layers = nn.ModuleDict({str(index): causal_lm.model.layers[index] for index in layers})
        self.model.rotary_emb = causal_lm.model.rotary_emb
        if last:
            self.model.norm = causal_lm.model.norm
            self.lm_head = causal_lm.lm_head


class Stage(nn.Module):
    """One virtual pipeline stage over layers of an OwnedLayers, under tensor, sequence and context parallelism.

    ``feed`` holds the micro-batches under way; ``forward`` is told which one by its number. The first stage reads token
    ids from there, others take hidden states [B, T/(c*t), H]; the last returns [B, T, 2] float32 (log-probs, entropy),
    others hidden states. T must be a multiple of c*t.
    """

    def __init__(self, owned: OwnedLayers, layers: list[int], first: bool, last: bool, mesh: Mesh) -> None:
        super().__init__()
        self.is_first, self.is_last = first, last
        self.tp_group, self.context = mesh.group("tp"), ContextSlice(mesh)
        self.rotary_emb: nn.Module = owned.model.rotary_emb
        self.layers = nn.ModuleList([owned.model.layers[str(index)] for index in layers])
        self.embed_tokens: nn.Module | None = owned.model.embed_tokens if first else None
        self.norm: nn.Module | None = owned.model.norm if last else None
        self.head = TokenHead(owned.lm_head, self.tp_group) if last else None
        self.temperature, self.autocast = 1.0, False
        self.feed: Sequence[TokenInputs] = ()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """``x``: hidden states, unread on the first stage; ``number`` [1] int64: index into ``feed``."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return self._forward(x, self.feed[int(number)])

    def _forward(self, x: Tensor, inputs: TokenInputs) -> Tensor:
        hidden = self.embed_tokens(self.context.of(inputs.input_ids)) if self.embed_tokens is not None else x
        positions = self.context.of(inputs.position_ids)
        rotary = self.rotary_emb(hidden, positions)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rotary,
                position_ids=positions,
                segments=inputs.segments,
            )
        if self.norm is None or self.head is None:
            return hidden
        # Every tensor rank continues with all positions and the same loss: its gradient is not summed again here.
        hidden = gather_sequence(self.norm(hidden), self.tp_group, summed=False)
        labels, loss_mask = self.context.of(inputs.labels), self.context.of(inputs.loss_mask)
        outputs = torch.stack(self.head(hidden, labels, loss_mask, self.temperature), -1)
        return gather_sequence(outputs, self.context.group, summed=False)


def head_load(config: Any) -> float:
    """What the head computes for a token over what a decoder layer does, by matrix products: its share of a stage.

    The head sees trained positions only, taken to be ``TRAINED`` of all.
    """
    size, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or size // heads
    attention = 2 * width * (heads + (getattr(config, "num_key_value_heads", None) or heads))
    experts = getattr(config, "num_experts_per_tok", 0) or 0
    inner = experts * config.moe_intermediate_size if experts else config.intermediate_size
    return float(TRAINED * config.vocab_size / (attention + 3 * inner))


def layers_of_stages(num_layers: int, num_stages: int, head: float = 0.0) -> list[list[int]]:
    """Contiguous layers of every stage, so that the slowest is as light as can be.

    The last also has the head, worth ``head`` layers. With fewer layers than stages the last ones go empty.
    """
    sizes = [int(stage < num_layers) for stage in range(num_stages)]
    extra = [0.0] * (num_stages - 1) + [head]
    for _ in range(num_layers - sum(sizes)):
        sizes[min(range(num_stages), key=lambda stage: sizes[stage] + extra[stage])] += 1
    ends = list(accumulate(sizes))
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
