"""Programs over a Hugging Face causal LM: the whole model, or one pipeline stage of it.

Programs borrow the model's own modules, so parameter names stay Hugging Face's and nothing is copied. No attention
mask is built: packed rows are kept apart by `attention`, padded rows by causal attention alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .collectives import gather_sequence
from .families.family import Family
from .families.registry import family_of
from .inputs import TokenInputs
from .logprobs import token_logprobs
from .mesh import Mesh
from .modules import find, put
from .replay import KEYWORD, Choices
from .tensor_parallel import local, vocab_start

#: Logits of one part of the labels, at most.
LOGITS_BYTES = 1 << 28


def is_tied(config: Any) -> bool:
    """Whether the head's weight is the embedding's."""
    return bool(getattr(config, "tie_word_embeddings", False))


class TokenHead(nn.Module):
    """The output head at trained positions only. Borrows the model's; its vocabulary may be split over ``group``."""

    def __init__(self, output: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.output: Any = output
        self.group = group

    def forward(self, hidden: Tensor, at: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Log-probs and entropy [1, L, 2] float32 of ``labels`` [L], which follow the tokens ``at`` [L] of ``hidden``
        [B, T, H], flattened.

        Many labels are computed in parts, and the logits of a part are computed again in backward, so that those of all
        labels never exist at once.
        """
        rows = hidden.flatten(0, 1)[at]
        size = self._part(rows)
        if len(rows) <= size:
            return self._outputs(rows, labels, temperature)[None]
        keeps = torch.is_grad_enabled()
        parts = zip(rows.split(size), labels.split(size), strict=True)
        found = [
            checkpoint(self._outputs, some, wanted, temperature, use_reentrant=False)
            if keeps
            else self._outputs(some, wanted, temperature)
            for some, wanted in parts
        ]
        return torch.cat(found)[None]

    def _part(self, rows: Tensor) -> int:
        """Rows of which the logits take at most `LOGITS_BYTES`."""
        weight = getattr(self.output, "weight", None)
        if weight is None:
            return len(rows)  # these are logits already
        return max(1, LOGITS_BYTES // (local(weight).shape[0] * rows.element_size()))

    def _outputs(self, rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
        logits = self.output(rows)
        start = vocab_start(self.output.weight) if self.group is not None else 0
        return torch.stack(token_logprobs(logits, labels, temperature, vocab_start=start, group=self.group), -1)


class ContextSlice:
    """This context rank's slice of a sequence."""

    def __init__(self, mesh: Mesh) -> None:
        self.group, self.rank, self.size = mesh.group("cp"), mesh.coordinate("cp"), mesh.spec.c

    def of(self, x: Tensor) -> Tensor:
        """The slice of [B, T]."""
        return x if self.group is None else x.chunk(self.size, dim=1)[self.rank]

    def targets(self, inputs: TokenInputs) -> tuple[Tensor, Tensor]:
        """Indices into the flattened slice, and labels, of the targets in it."""
        return inputs.targets.at[self.rank], inputs.targets.labels[self.rank]


class WholeModel(nn.Module):
    """All layers in one program: token ids in, log-probs and entropy out. Each context rank computes a slice."""

    def __init__(self, model: Any, mesh: Mesh) -> None:
        super().__init__()
        self.causal_lm, self.context, self.mesh = model, ContextSlice(mesh), mesh
        self.plain_head = family_of(model.config) is not None
        self.replays = False
        head = model.get_output_embeddings() if self.plain_head else nn.Identity()
        self.head = TokenHead(head)

    def forward(self, inputs: TokenInputs, temperature: float) -> Tensor:
        """Log-probs and entropy of all targets, [1, c * L, 2] float32."""
        own, extra = self.context.of, dict[str, Any]()
        if inputs.segments is not None or self.context.group is not None:
            # Whole padded rows start at 0 anyway; their position ids would make transformers look for packed documents.
            extra["position_ids"] = own(inputs.position_ids)
        if inputs.segments is not None:
            extra["segments"] = inputs.segments
        if self.replays and inputs.routed is not None:
            extra[KEYWORD] = Choices(inputs.routed, range(self.causal_lm.config.num_hidden_layers), self.mesh)
        if self.plain_head:
            backbone = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
            hidden = backbone(input_ids=own(inputs.input_ids), use_cache=False, **extra).last_hidden_state
        else:
            # Unknown families may scale or cap their logits in their own forward, so only that is correct.
            hidden = self.causal_lm(input_ids=own(inputs.input_ids), use_cache=False, **extra).logits
        outputs = self.head(hidden, *self.context.targets(inputs), temperature)
        return gather_sequence(outputs, self.context.group, summed=False)


class OwnedLayers(nn.Module):
    """The parameters one pipeline rank owns, under their Hugging Face names (layers keyed by global index).

    Parts that other ranks own are absent: ``embedding`` and ``head`` are None there.
    """

    def __init__(self, causal_lm: Any, family: Family, layers: list[int], first: bool, last: bool) -> None:
        super().__init__()
        parts = family.parts
        self.config, self.family = causal_lm.config, family
        every = find(causal_lm, parts.layers)
        if first:
            put(self, parts.embedding, find(causal_lm, parts.embedding))
        put(self, parts.layers, nn.ModuleDict({str(index): every[index] for index in layers}))
        put(self, parts.rotary, find(causal_lm, parts.rotary))
        if last:
            put(self, parts.norm, find(causal_lm, parts.norm))
            put(self, parts.head, find(causal_lm, parts.head))

    @property
    def embedding(self) -> Any:
        """The token embedding, or None."""
        return find(self, self.family.parts.embedding)

    @property
    def head(self) -> Any:
        """The output head, or None."""
        return find(self, self.family.parts.head)

    def layer(self, index: int) -> nn.Module:
        """The layer of a global index. Raises KeyError when another rank owns it."""
        found: nn.Module = find(self, self.family.parts.layers)[str(index)]
        return found


class Stage(nn.Module):
    """One virtual pipeline stage over layers of an OwnedLayers, under tensor, sequence and context parallelism.

    ``feed`` holds the current micro-batches; ``forward`` gets the index of one. The first stage reads token ids
    from there, others take hidden states [B, T/(c*t), H]; the last returns log-probs and entropy of all
    targets, [1, c*L, 2] float32, others hidden states. T must be a multiple of c*t.
    """

    def __init__(self, owned: OwnedLayers, layers: list[int], first: bool, last: bool, mesh: Mesh) -> None:
        super().__init__()
        self.is_first, self.is_last = first, last
        self.tp_group, self.context, self.mesh = mesh.group("tp"), ContextSlice(mesh), mesh
        self.numbers, self.replays = layers, False
        self.rotary_emb: nn.Module = find(owned, owned.family.parts.rotary)
        self.rotary_kind = owned.family.rotary_kind
        self.layers = nn.ModuleList([owned.layer(index) for index in layers])
        self.embedding: nn.Module | None = owned.embedding if first else None
        self.norm: nn.Module | None = find(owned, owned.family.parts.norm) if last else None
        self.head = TokenHead(owned.head, self.tp_group) if last else None
        self.temperature, self.autocast = 1.0, False
        self.feed: Sequence[TokenInputs] = ()

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """``x``: hidden states, unread on the first stage; ``number`` [1] int64: index into ``feed``."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return self._forward(x, self.feed[int(number)])

    def _forward(self, x: Tensor, inputs: TokenInputs) -> Tensor:
        hidden = self.embedding(self.context.of(inputs.input_ids)) if self.embedding is not None else x
        positions = self.context.of(inputs.position_ids)
        rotary: dict[Any, Any] = {}
        extra = dict[str, Any]()
        if self.replays and inputs.routed is not None:
            extra[KEYWORD] = Choices(inputs.routed, self.numbers, self.mesh)
        for layer in self.layers:
            kind = find(layer, self.rotary_kind) if self.rotary_kind is not None else None
            if kind not in rotary:
                rotary[kind] = self.rotary_emb(hidden, positions, *(() if kind is None else (kind,)))
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rotary[kind],
                position_ids=positions,
                segments=inputs.segments,
                **extra,
            )
        if self.norm is None or self.head is None:
            return hidden
        # Every tensor rank continues with all positions and the same loss: its gradient is not summed again here.
        hidden = gather_sequence(self.norm(hidden), self.tp_group, summed=False)
        outputs = self.head(hidden, *self.context.targets(inputs), self.temperature)
        return gather_sequence(outputs, self.context.group, summed=False)
