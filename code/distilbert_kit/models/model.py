"""DistilBERT, BERT and MPNet in plain PyTorch over scaled-dot-product attention.

One encoder serves all three: `model_type` "bert" adds token types and a pooler, "mpnet" a bias by
relative position.
Shapes: B batch, L length, H hidden size, V vocabulary, C classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import LayerNorm
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

from ..errors import UserError
from ..losses import compute_classification_loss, compute_mlm_loss, span_loss
from .checkpoints import Pretrained
from .config import ACTIVATIONS, ModelConfig


def _activation(name: str) -> nn.Module:
    # Of torch: importing transformers' own takes seconds.
    module, options = ACTIVATIONS[name]
    return getattr(nn, module)(**options)


class Dropout(nn.Dropout):
    """Dropout that takes four decisions from each 64-bit random number on a CPU.

    PyTorch draws one number for each value there, one after the other, which costs more than
    the products of a small layer. The probability is `p` to within 2**-17.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p and x.device.type == "cpu"):
            return super().forward(x)
        dropped = round(self.p * 2**16)
        numbers = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: x.numel()].ge_(dropped - 2**15).view(x.shape)
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, LayerNorm, dropout: [B, L] ids -> [B, L, H]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(
            config.vocab_size, size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.first_position, self.max_length = config.first_position, config.max_length
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        length, most, first = input_ids.shape[1], self.max_length, self.first_position
        if length > most:
            raise UserError(f"a sequence of {length} tokens: this model takes {most}; cut it")
        positions = self.position_embeddings.weight[first : first + length]
        x = self.word_embeddings(input_ids) + positions
        if hasattr(self, "token_type_embeddings"):
            types = self.token_type_embeddings
            x = x + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        return self.dropout(self.norm(x))


class RelativePositionBias(nn.Embedding):
    """MPNet's bias of attention by distance: one number a head for each of 32 ranges."""

    BUCKETS, FARTHEST = 32, 128  # as transformers has them fixed; farther tokens share a range
    buckets: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__(self.BUCKETS, config.num_heads)
        distances = torch.arange(1 - config.max_length, config.max_length)
        self.register_buffer("buckets", self._bucket(distances), persistent=False)

    @classmethod
    def _bucket(cls, distance: Tensor) -> Tensor:
        """The range of key position - query position: T5's, arXiv 1910.10683, section 2.1."""
        each = cls.BUCKETS // 2  # a half looks back, the other ahead
        exact = each // 2
        size = distance.abs()
        scale = math.log(cls.FARTHEST / exact)
        far = (size.clamp(min=exact).float() / exact).log() / scale * (each - exact)
        far = (exact + far.long()).clamp(max=each - 1)
        return (distance > 0) * each + torch.where(size < exact, size, far)

    def forward(self, length: int) -> Tensor:
        """[1, heads, length, length], to be added to the scores of queries (rows) and keys."""
        places = torch.arange(length, device=self.buckets.device)
        distances = places[None, :] - places[:, None] + len(self.buckets) // 2
        # By distance first: a GPU adds up the gradients of one row one after the other.
        by_distance = self.weight[self.buckets]
        # Contiguous: attention on a GPU copies a mask of another layout, in every layer.
        return by_distance[distances].permute(2, 0, 1).contiguous()[None]


class MultiHeadAttention(nn.Module):
    """Self-attention; query, key and value share one projection (fewer, larger products)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = Dropout(config.attention_dropout)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None, queries: int | None = None
    ) -> Tensor:
        """x [B, L, H]; attention_mask boolean, True where attended, [B, 1, 1, L], or None.

        Or a float mask that is added to the scores, [B or 1, heads, L, L].
        With `queries`, only the first `queries` positions attend: [B, queries, H].
        """
        batch, length, size = x.shape
        query, key, value = (
            self.qkv(x)
            .view(batch, length, 3, self.num_heads, size // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, :queries]
        attend = self._attend_with_dropout if self.training else F.scaled_dot_product_attention
        context = attend(query[:, :, :queries], key, value, attention_mask)
        return self.output(context.transpose(1, 2).flatten(2))

    def _attend_with_dropout(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """scaled_dot_product_attention in training, written out on a CPU for the faster mask."""
        if query.device.type != "cpu":
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask, dropout_p=self.dropout.p
            )
        scores = query * query.shape[-1] ** -0.5 @ key.mT
        if attention_mask is not None:
            if attention_mask.dtype == torch.bool:
                lowest = torch.finfo(scores.dtype).min
                attention_mask = torch.where(attention_mask, 0.0, lowest).to(scores.dtype)
            scores = scores + attention_mask
        return self.dropout(scores.softmax(-1)) @ value


class FeedForward(nn.Module):
    """Two linear layers around the activation: [B, L, H] -> [B, L, H]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.inner = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = _activation(config.activation)
        self.outer = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.activation(self.inner(x)))


class TransformerEncoderBlock(nn.Module):
    """Post-norm transformer block, as in BERT."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = MultiHeadAttention(config)
        # BERT drops out the attention output; DistilBERT as released does not.
        dropped = config.model_type != "distilbert"
        self.attention_dropout = Dropout(config.dropout if dropped else 0.0)
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        self.output_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """x [B, L, H] -> [B, L, H], or [B, queries, H]: the first positions only."""
        attended = self.attention_dropout(self.attention(x, attention_mask, queries))
        x = self.attention_norm(x[:, :queries] + attended)
        return self.output_norm(x + self.dropout(self.feed_forward(x)))


def _initialise(module: nn.Module, std: float) -> None:
    """BERT's initialisation: N(0, std) weights, zero biases, a zero padding row."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=std)
            if layer.padding_idx is not None:
                nn.init.zeros_(layer.weight.data[layer.padding_idx])


class DistilBERTModel(Pretrained):
    """The encoder without a head; with another `model_type`, BERT or MPNet with its pooler."""

    def __init__(self, config: ModelConfig, pooler: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(
            TransformerEncoderBlock(config) for _ in range(config.num_layers)
        )
        if config.model_type == "mpnet":
            self.relative_bias = RelativePositionBias(config)
        if config.model_type != "distilbert" and pooler:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        _initialise(self, config.initializer_range)

    def last_hidden_state(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        positions: int | None = None,
    ) -> Tensor:
        """Last hidden state [B, L, H] of input_ids [B, L]; attention_mask is 1 on real tokens.

        With `positions` [B, positions, H]: the last block computes the first positions only,
        which is all that a classifier reads.
        """
        # Without padding no mask is needed, and attention takes its fastest path. On a GPU the
        # look at the mask would cost a synchronisation, so there the mask is always passed, as it
        # is in an exported graph, which must serve both.
        if attention_mask is not None:
            look = attention_mask.device.type == "cpu" and not torch.compiler.is_exporting()
            dense = look and bool(attention_mask.all())
            attention_mask = None if dense else attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        if torch.is_autocast_enabled(x.device.type):
            # On a CPU the residual stream stays in the low precision: half the memory traffic. On a
            # GPU autocast's LayerNorm makes it fp32 again.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.config.model_type == "mpnet":
            bias = self.relative_bias(x.shape[1]).to(x.dtype)
            if attention_mask is not None:
                bias = bias.masked_fill(~attention_mask, torch.finfo(x.dtype).min)
            attention_mask = bias
        elif attention_mask is not None and torch.compiler.is_exporting():
            # With a boolean mask, each layer of a graph looks for rows that attend to nothing:
            # 8 % of the time of an int8 graph at 512 tokens.
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(x.dtype).min).to(x.dtype)
        for block in self.blocks[:-1]:
            x = block(x, attention_mask)
        return self.blocks[-1](x, attention_mask, positions)

    def pool(self, hidden: Tensor) -> Tensor | None:
        """The pooler on the first position: [B, L, H] -> [B, H]; None without one."""
        return torch.tanh(self.pooler(hidden[:, 0])) if hasattr(self, "pooler") else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """As `last_hidden_state`, with `.last_hidden_state` and the `.pooler_output` [B, H]."""
        hidden = self.last_hidden_state(input_ids, attention_mask, token_type_ids)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.pool(hidden))


class _WithHead(Pretrained):
    """An encoder under a head; heads that do not read BERT's pooler keep it, untrained."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = DistilBERTModel(config, pooler=config.model_type == "bert")
        if config.model_type == "bert" and not self.reads_pooler:
            self.encoder.pooler.requires_grad_(False)


class DistilBERTForMaskedLM(_WithHead):
    """Masked language model; the decoder shares the word embeddings."""

    hub_class = "ForMaskedLM"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        size = config.hidden_size
        self.transform = nn.Linear(size, size)
        # MPNet's head has its own activation.
        self.activation = _activation("gelu" if config.model_type == "mpnet" else config.activation)
        self.transform_norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.decoder_bias = nn.Parameter(torch.zeros(config.vocab_size))
        _initialise(self.transform, config.initializer_range)

    def freeze_body(self) -> None:
        """From now on train only the head, on the encoder's outputs without dropout.

        The decoder is the word embeddings, which are the encoder's: they stay as they are too.
        """
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "DistilBERTForMaskedLM":
        """As every module's; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    @property
    def decoder_weight(self) -> Tensor:
        """[V, H], the word embeddings."""
        return self.encoder.embeddings.word_embeddings.weight

    def head(self, hidden: Tensor) -> Tensor:
        """The vocabulary transform: hidden states [..., H] -> what the decoder reads [..., H]."""
        return self.transform_norm(self.activation(self.transform(hidden)))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits [B, L, V]; with labels [B, L] (-100 ignored) also the mean loss."""
        hidden = self.encoder.last_hidden_state(input_ids, attention_mask, token_type_ids)
        logits = F.linear(self.head(hidden), self.decoder_weight, self.decoder_bias)
        loss = None if labels is None else compute_mlm_loss(logits, labels)
        return MaskedLMOutput(loss=loss, logits=logits)


class DistilBERTForSequenceClassification(_WithHead):
    """Classification (or regression, with one label) of sentences and sentence pairs.

    `num_labels` is by default the number of `labels`, or 2. With `multi_label` each label is asked
    for itself: any number of them may hold. UserError where both are given and disagree.
    """

    hub_class = "ForSequenceClassification"
    reads_pooler = True

    def __init__(
        self,
        config: ModelConfig,
        num_labels: int | None = None,
        labels: tuple[str, ...] = (),
        multi_label: bool = False,
    ):
        super().__init__(config)
        self.labels = tuple(labels) or tuple(f"LABEL_{i}" for i in range(num_labels or 2))
        self.num_labels, self.multi_label = len(self.labels), multi_label
        if num_labels not in (None, self.num_labels):
            raise UserError(
                f"{num_labels} classes but {self.num_labels} labels: give a name for each"
            )
        if config.model_type != "bert":
            self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        for layer in (getattr(self, "pre_classifier", self.classifier), self.classifier):
            _initialise(layer, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits [B, C]; with labels [B] also the mean cross-entropy (or squared error, C = 1).

        Labels of a multi-label model are 0 or 1, [B, C]; the loss is the mean binary one.
        """
        hidden = self.encoder.last_hidden_state(
            input_ids, attention_mask, token_type_ids, positions=1
        )
        if self.config.model_type == "bert":
            pooled = self.encoder.pool(hidden)
        elif self.config.model_type == "mpnet":
            pooled = torch.tanh(self.pre_classifier(self.dropout(hidden[:, 0])))
        else:
            pooled = F.relu(self.pre_classifier(hidden[:, 0]))
        logits = self.classifier(self.dropout(pooled))
        if labels is None:
            loss = None
        elif self.multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float())
        else:
            loss = compute_classification_loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class DistilBERTForQuestionAnswering(_WithHead):
    """Start and end logits of an answer span."""

    hub_class = "ForQuestionAnswering"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.dropout = Dropout(config.qa_dropout)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        _initialise(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits [B, L]; with positions [B] also the mean loss of the two."""
        hidden = self.encoder.last_hidden_state(input_ids, attention_mask, token_type_ids)
        start, end = self.qa_outputs(self.dropout(hidden)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions) / len(input_ids)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
