"""Qwen3-MoE's experts, of which each rank computes some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from tau2_lightning.strategy.expert_parallel import ExpertShard, exchange_counts, route
from tau2_lightning.strategy.tensor_parallel import local


class SplitExperts(ExpertShard):
    """E/e of Qwen3-MoE's E experts (3-D weights, expert first) on each rank of ``mesh``; parameter names stay."""

    def __init__(self, experts: Any, mesh: DeviceMesh) -> None:
        super().__init__(experts.num_experts, mesh)
        self.act_fn = experts.act_fn
        self.gate_up_proj = self.share_out(experts.gate_up_proj)
        self.down_proj = self.share_out(experts.down_proj)

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """``hidden`` [N, H], ``index`` and ``weights`` [N, k] -> weighted sum of the chosen experts [N, H]."""
        chosen = index.reshape(-1)
        order = chosen.argsort(stable=True)
        token = order // index.shape[1]
        counts = chosen.bincount(minlength=self.num_experts).view(-1, self.held)
        arriving = exchange_counts(counts, self.group)
        send, receive = counts.sum(1).tolist(), arriving.sum(1).tolist()
        rows = route(hidden[token], self.group, send, receive)
        # Rows arrive by source rank, then expert; experts want theirs together.
        expert = torch.arange(self.held, device=rows.device).repeat(len(receive)).repeat_interleave(arriving.flatten())
        together = expert.argsort(stable=True)
        parts = torch.split(rows[together], arriving.sum(0).tolist())
        up, down = local(self.gate_up_proj).to(rows.dtype), local(self.down_proj).to(rows.dtype)
        done = torch.cat([self._expert(part, up[i], down[i]) for i, part in enumerate(parts)])
        back = route(done[together.argsort()], self.group, receive, send)
        weighted = back * weights.reshape(-1)[order, None]
        return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden.dtype))

    def _expert(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, value = F.linear(x, up).chunk(2, dim=-1)
        return F.linear(self.act_fn(gate) * value, down)
