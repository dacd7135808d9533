"""What learns: all weights, LoRA factors, virtual tokens through an encoder, or keys and values.

Each method is an Objective with steps of its own, and gives its result as an adapter.
Shapes: B rows, T tokens, E model width, P virtual positions, L layers, H heads, D head width, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.adapter import Adapter, Floats, KeyValuePrefix, Lora, LowRank, SoftPrompt
from kogpt.errors import ConfigError
from kogpt.model import GPTJ, ForwardPass, Linear
from kogpt.training.loss import IGNORED
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.tuning.frozen import FrozenLinear

MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
ENCODERS = ("mlp", "lstm", "none")
HEAD_ROWS = 8192  # of the head that become float32 at a time

Places = tuple[Tensor, Tensor]  # (M,) rows and (M,) positions


class TuningObjective(Objective):
    """All weights learn, by the loss of the answers; the head runs on scored positions only.

    After `add_head` a linear head on the last hidden state answers instead of words, as in transformers'
    GPTJForSequenceClassification: one output for each label, or a single one for a grade.
    """

    n_virtual = 0  # positions before every text
    prompt_loss_weight = 0.0  # of a prompt's token beside one of the answer
    # What reads weights outside of `forward`: among several processes these gather them as `forward` does.
    gathering: tuple[str, ...] = (
        *("likelihoods", "next_ids", "starting_values", "adapter", "encoder_state"),
        *("answers", "vectors", "head"),
    )

    def __init__(self, model: GPTJ, compute: ComputeSettings) -> None:
        super().__init__(model, compute)
        self.score: nn.Linear | None = None  # a head that answers instead of words

    def add_head(self, n_outputs: int) -> None:
        """Begin with a head of small random weights."""
        self.score = nn.Linear(self.model.config.d_model, n_outputs, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) ids and (B, T) targets -> summed loss (); in training with that of the prompts, weighted.

        Language modelling as an auxiliary objective (Radford et al. 2018, section 3.2).
        """
        hidden = self.hidden(self.embedded(inputs), self.forward_pass(inputs))
        loss = self.loss(hidden, targets)
        if self.prompt_loss_weight and torch.is_grad_enabled():
            loss = loss + self.prompt_loss_weight * self._prompt_loss(hidden, inputs, targets)
        return loss

    def _prompt_loss(self, hidden: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed loss of the ids before what is scored, which follow the ids before them."""
        before = _scored(targets).cumsum(1)[:, :-1] == 0
        states = hidden[:, -targets.shape[1] : -1][before]
        return super().loss(states[None], inputs[:, 1:][before][None])

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """As Objective's; the other positions have no part in it, and get no logits.

        Of a head: cross-entropy of labels, or squared error of grades, summed.
        """
        if self.score is not None:
            return self._head_loss(hidden, targets)
        scored = targets != IGNORED
        return super().loss(hidden[:, -targets.shape[1] :][scored][None], targets[scored][None])

    def _head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        outputs, wanted = self._outputs(hidden, targets), targets[_scored(targets)]
        words = self.model.lm_head
        # In full tuning the head of words learns nothing, but its optimizer state has to be there.
        nothing = sum((0 * weight.sum() for weight in words.parameters() if weight.requires_grad), start=0.0)
        if wanted.is_floating_point():
            return F.mse_loss(outputs[:, 0], wanted, reduction="sum") + nothing
        return F.cross_entropy(outputs, wanted, reduction="sum") + nothing

    def _outputs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        assert self.score is not None
        outputs: Tensor = self.score(hidden[:, -targets.shape[1] :][_scored(targets)].float())
        return outputs

    def answers(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs of the head at the scored positions of (B, T) ids: (N, outputs) float32."""
        hidden = self.hidden(self.embedded(inputs), self.forward_pass(inputs))
        return self._outputs(hidden, targets)

    def likelihoods(self, inputs: Tensor, places: Places, wanted: Tensor) -> Tensor:
        """Log-likelihood of `wanted`, (M,) ids, after M places in (B, T) ids: (M,), nats."""
        values: Tensor = self._logits(inputs, places).log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        return values

    def next_ids(self, inputs: Tensor, places: Places) -> Tensor:
        """The likeliest id after each of M places in (B, T) ids: (M,)."""
        return self._logits(inputs, places).argmax(-1)

    def _logits(self, inputs: Tensor, places: Places) -> Tensor:
        """(M, V) in float32; the head's weights become float32 a part at a time."""
        hidden = self.hidden(self.embedded(inputs), self.forward_pass(inputs))[:, -inputs.shape[1] :]
        x, head = hidden[places].float(), self.model.lm_head
        parts = zip(head.weight.split(HEAD_ROWS), head.bias.split(HEAD_ROWS), strict=True)
        return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in parts], dim=-1)

    def starting_values(self, text: Sequence[int]) -> Mapping[str, Tensor]:
        """Values of parameters that begin from a text of ids, by name."""
        return {}

    def adapter(self) -> Adapter | None:
        """What was learnt; None: the weights themselves."""
        return None

    def encoder_state(self) -> Mapping[str, Tensor]:
        """Weights that made the adapter and are not in it."""
        return {}

    def head(self) -> Floats | None:
        """The weights of the head, (outputs, E)."""
        return None if self.score is None else _array(self.score.weight)


class LowRankUpdate(nn.Module):
    """scale * b @ a beside one matrix; b begins as zero, so that the model begins unchanged."""

    def __init__(self, linear: FrozenLinear, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / math.sqrt(rank)  # rsLoRA, arXiv 2312.03732
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return F.linear(F.linear(x, self.a) * self.scale, self.b)


class LoraPass(ForwardPass):
    """Plain attention; products with the updates of their matrices added."""

    def __init__(self, updates: Mapping[nn.Module, LowRankUpdate]) -> None:
        self._updates = updates

    def project(self, linear: Linear, x: Tensor) -> Tensor:
        update = self._updates.get(linear)
        return linear(x) if update is None else linear(x) + update(x)


class LoraObjective(TuningObjective):
    """Low-rank updates learn beside the matrices of a frozen model (arXiv 2106.09685)."""

    def __init__(
        self,
        model: GPTJ,
        compute: ComputeSettings,
        rank: int,
        alpha: float,
        targets: Sequence[str] = MATRICES,
    ) -> None:
        super().__init__(model, compute)
        if unknown := [name for name in targets if name not in MATRICES]:
            raise ConfigError(
                f"there is no matrix {unknown[0]!r}: choose from {', '.join(MATRICES)}",
                f"{unknown[0]!r} 행렬은 없습니다. {', '.join(MATRICES)} 중에서 고르세요",
            )
        self.names: list[str] = []
        self.updates = nn.ModuleList()
        self._by_matrix: dict[nn.Module, LowRankUpdate] = {}
        for name, module in model.named_modules():
            if isinstance(module, FrozenLinear) and name.rpartition(".")[2] in targets:
                update = LowRankUpdate(module, rank, alpha)
                self.names.append(name)
                self.updates.append(update)
                self._by_matrix[module] = update

    def forward_pass(self, inputs: Tensor) -> ForwardPass:
        """Products with the updates."""
        return LoraPass(self._by_matrix)

    def adapter(self) -> Lora:
        """The factors by the names of their matrices."""
        return Lora(
            {
                name: LowRank(_array(update.a), _array(update.b), update.scale)
                for name, update in zip(self.names, self._by_matrix.values(), strict=True)
            }
        )


def _scored(targets: Tensor) -> Tensor:
    return ~targets.isnan() if targets.is_floating_point() else targets != IGNORED


class ContrastObjective(LoraObjective):
    """LoRA by the pairs of a batch: each text finds its partner among all others (InfoNCE).

    As SimCSE's supervised loss (arXiv 2104.08821, section 3) on mean-pooled hidden states, both ways.
    Targets hold the number of a pair at the last id of each of its two texts.
    """

    temperature = 0.05

    def vectors(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Embeddings of (B, T) ids, scaled to length 1: (B, E)."""
        return self._pooled(self.hidden(self.embedded(inputs), self.forward_pass(inputs)), targets)

    def _pooled(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Means over the ids of each text; (B, T, E) -> (B, E)."""
        after = _scored(targets).flip(1).cumsum(1).flip(1)[..., None] > 0  # up to the last id
        means = (hidden.float() * after).sum(1) / after.sum(1)
        return F.normalize(means, dim=-1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over the texts; inputs and targets (B, T), B = 2 x pairs."""
        vectors, pairs = self.vectors(inputs, targets), targets[_scored(targets)]
        itself = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
        partners = ((pairs[:, None] == pairs) & ~itself).long().argmax(1)
        texts = (inputs[:, None] == inputs).all(-1).long().argmax(1)  # the first that is equal
        rows = torch.arange(len(texts), device=texts.device)
        likeness = apart(vectors @ vectors.T / self.temperature, rows, texts, partners)
        return F.cross_entropy(likeness, partners, reduction="sum")


def apart(likeness: Tensor, rows: Tensor, texts: Tensor, partners: Tensor) -> Tensor:
    """(R, N) likeness of `rows` to all N texts; -inf for the text itself and its other partners.

    texts: (N,) numbers below N, equal for equal texts; partners: (N,) places. A text that stands in several
    pairs would be a wrong answer to itself, and its other partners as well.
    """
    same = texts == texts[rows][:, None]
    paired = torch.zeros_like(likeness).index_add_(1, texts[partners], same.to(likeness.dtype)) > 0
    known = same | paired[:, texts]
    known[torch.arange(len(rows), device=rows.device), partners[rows]] = False
    return likeness.masked_fill(known, -math.inf)


class PromptEncoder(nn.Module):
    """Virtual tokens -> (P, E): embeddings through an MLP, or a two-layer LSTM and an MLP, or as they are.

    The first two as published for P-tuning (Liu et al. 2021, arXiv 2103.10385, section 3.2); "none" is prompt
    tuning (arXiv 2104.08691), whose embeddings begin as those of words.
    """

    def __init__(self, n_virtual: int, width: int, kind: str) -> None:
        super().__init__()
        if kind not in ENCODERS:
            raise ConfigError(
                f"encoder {kind!r} is unknown: choose one of {', '.join(ENCODERS)}",
                f"알 수 없는 인코더입니다: {kind!r}. {', '.join(ENCODERS)} 중에서 고르세요",
            )
        self.embedding = nn.Parameter(torch.randn(n_virtual, width))
        self.lstm: nn.LSTM | None = None
        self.mlp: nn.Module | None = None
        if kind == "lstm":
            self.lstm = nn.LSTM(width, width // 2, num_layers=2, bidirectional=True, batch_first=True)
        if kind != "none":
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self) -> Tensor:
        """(P, E)."""
        x: Tensor = self.embedding
        if self.lstm is not None:
            x = self.lstm(x[None])[0][0]
        return x if self.mlp is None else self.mlp(x)


class PromptObjective(TuningObjective):
    """P-tuning: an encoder learns the embeddings of virtual tokens before every text; the model is frozen."""

    def __init__(self, model: GPTJ, compute: ComputeSettings, n_virtual: int, encoder: str) -> None:
        super().__init__(model, compute)
        self.n_virtual = n_virtual
        self.encoder = PromptEncoder(n_virtual, model.config.d_model, encoder)

    def embedded(self, inputs: Tensor) -> Tensor:
        """(B, T) ids -> (B, P + T, E)."""
        prompt = self.encoder()
        return torch.cat((prompt.expand(len(inputs), -1, -1), super().embedded(inputs)), dim=1)

    def starting_values(self, text: Sequence[int]) -> Mapping[str, Tensor]:
        """Without an encoder, the embeddings of the text."""
        if self.encoder.mlp is not None:
            return {}
        ids = torch.tensor(text, device=self.model.lm_head.weight.device)
        return {"encoder.embedding": self.model.embed(ids).float()}

    def adapter(self) -> SoftPrompt:
        """The encoder's result."""
        with torch.no_grad():
            return SoftPrompt(_array(self.encoder()))

    def encoder_state(self) -> Mapping[str, Tensor]:
        """The encoder, without which tuning cannot go on."""
        if self.encoder.mlp is None:
            return {}
        return {name: value.detach().clone() for name, value in self.encoder.named_parameters()}


class PrefixPass(ForwardPass):
    """Attention that sees P keys and values of every layer before the text."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """keys, values: (L, P, H, D)."""
        self._keys, self._values = (both.transpose(1, 2) for both in (keys, values))  # (L, H, P, D)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_rows, _, n_tokens, _ = q.shape
        k, v = (
            torch.cat((before[layer].to(own.dtype).expand(n_rows, -1, -1, -1), own), dim=2)
            for before, own in ((self._keys, k), (self._values, v))
        )
        n_before = k.shape[2] - n_tokens
        mask = torch.ones(n_tokens, k.shape[2], dtype=torch.bool, device=q.device).tril(n_before)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class PrefixObjective(TuningObjective):
    """Prefix tuning (arXiv 2101.00190; v2, 2110.07602): keys and values learn, begun from a real text."""

    def __init__(self, model: GPTJ, compute: ComputeSettings, n_virtual: int) -> None:
        super().__init__(model, compute)
        self.n_virtual = n_virtual
        shape = (model.config.n_layers, n_virtual, model.config.n_heads, model.config.d_head)
        self.keys, self.values = (nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def forward_pass(self, inputs: Tensor) -> ForwardPass:
        """Attention with the prefix."""
        return PrefixPass(self.keys, self.values)

    def hidden(self, x: Tensor, run: ForwardPass) -> Tensor:
        """(B, T, E) -> (B, T, E); the text stands at the positions after the prefix."""
        dtype = self.compute.dtype_on(x.device)
        positions = torch.arange(self.n_virtual, self.n_virtual + x.shape[1], device=x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return self.model.trunk(x, positions, run)

    def starting_values(self, text: Sequence[int]) -> Mapping[str, Tensor]:
        """The keys, rotated, and values of a text of P ids: (L, P, H, D) each."""
        run, ids = _Listening(), torch.tensor([list(text)], device=self.model.lm_head.weight.device)
        with torch.no_grad():
            super().hidden(super().embedded(ids), run)
        return {"keys": torch.stack(run.keys).float(), "values": torch.stack(run.values).float()}

    def adapter(self) -> KeyValuePrefix:
        """Keys, rotated, and values."""
        return KeyValuePrefix(_array(self.keys), _array(self.values))


class _Listening(ForwardPass):
    """Keeps the keys and values that the model computes."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys.append(k[0].transpose(0, 1))
        self.values.append(v[0].transpose(0, 1))
        return super().attend(layer, q, k, v)


def _array(tensor: Tensor) -> Floats:
    """A copy, which outlives the gathered weights of several processes."""
    found: Floats = tensor.detach().cpu().numpy().copy()
    return found


def n_trained(objective: TuningObjective) -> int:
    """Weights that learn."""
    return sum(value.numel() for value in objective.parameters() if value.requires_grad)
