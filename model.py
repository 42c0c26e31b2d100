"""A compact GPT-2: the model that train.py trains and sample.py writes with.

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128))
    logits, _ = model(idx)                             # idx: (B, T) int64 GPT-2 token ids; (B, T, V)
    _, loss = model(idx, targets)                      # in parts, so that long logits are never held
    tokens = model.generate(idx, max_new_tokens=40)    # (B, T + 40)
    model = GPT.load("out/best.pt")

In the shapes below B is the batch, T the time (tokens), C the channels (n_embd), V the vocabulary.
Read it from the top to GPT.stream: attention, MLP, block, how a token is chosen, then the GPT that stacks
the blocks and writes text. That is all of GPT-2. After that come its loss in parts, saving and loading; a
loss in half precision; SmallCorpusGPT, which adds what a few thousand tweets need; and reading files.

Names are GPT-2's, so that its weights load: wte and wpe embed tokens and positions, h are the blocks, ln
is a LayerNorm, c_attn makes queries, keys and values, c_fc widens, c_proj maps back to C channels.
"""

import collections
import dataclasses
import importlib.util
import json
import math
import pathlib
import pickle
import zlib
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from config import UserError, written_whole

CHECKPOINT_FORMAT = 1
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
END_OF_TEXT = 50256  # GPT-2's <|endoftext|>, which also marks where the next tweet begins
# logits of 512 positions at a time: those of a batch are never held, and backward needs no second pass
LOSS_OPTIONS = nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The rest of the class checks it: UserError (a ValueError) for impossible values."""

    block_size: int = 64  # the most tokens it can look back on
    vocab_size: int = 50257
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    bias: bool = True  # in Linear and LayerNorm, as GPT-2 has it
    gelu: str = "exact"  # or "tanh", the approximation that GPT-2's weights were trained with
    separate_tweets: bool = False  # hide what is before its <|endoftext|> from a tweet, in the network
    output_bias: bool = False  # a bias for each row of the head, initialised to its log frequency
    # what helps on a small corpus; all of it needs the tables that corpus_tables() makes
    compact_vocab: bool = False  # a row for each token seen twice or more, and one shared by all others
    spelling: int = 0  # size of the hash table of spelling vectors; 0 for none
    ngram_order: int = 0  # mix in an n-gram model of this order; 0 for none
    ngram_weight: float = 0.5  # the n-gram model's share of each prediction
    noise: float = 0.0  # how strongly training replaces input tokens at random

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type and not (field.type is float and type(value) is int):
                raise UserError(f"{field.name}: {value!r} is not of type {field.type.__name__}")
            least = 0 if field.name in ("spelling", "ngram_order") else 1
            if field.type is int and value < least:
                raise UserError(f"{field.name}: {value} is too small; it must be at least {least}")
            if field.type is float and not 0 <= value < 1:
                raise UserError(f"{field.name}: {value} is out of range; it must be at least 0 and below 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.gelu not in ("exact", "tanh"):
            raise UserError(f"gelu: {self.gelu!r} is not one of exact, tanh")
        if (self.spelling or self.ngram_order) and not self.compact_vocab:
            raise UserError("spelling and ngram_order need compact_vocab=True")
        if self.ngram_order == 1 or (self.ngram_order and not self.ngram_weight):
            raise UserError("ngram_order must be 0 or at least 2, and with it ngram_weight must be above 0")
        if self.noise and not self.ngram_order:
            raise UserError("noise needs an ngram_order of 2 or more")


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and the tokens before it, in n_head different ways at once.

    A token's query q says what it looks for, its key k what it offers, its value v what it passes on.
    A head computes softmax(q @ k.T / sqrt(C / n_head)) @ v, with the softmax over only the tokens that
    each may look at (Vaswani et al. 2017, "Attention Is All You Need"). `weights` spells it out;
    `forward` leaves it to a fused function.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def queries_keys_values(self, x):
        """(B, T, C) -> three of (B, n_head, T, C / n_head)."""
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        return [part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=-1)]

    def weights(self, x, mask=None):
        """How much each token looks at each: (B, T, C) -> (B, n_head, T, T); rows sum to 1."""
        q, k, _ = self.queries_keys_values(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        allowed = torch.ones_like(scores, dtype=torch.bool).tril() if mask is None else mask
        return scores.masked_fill(~allowed, -math.inf).softmax(-1)

    def forward(self, x, mask=None, cache=None, start=0):
        """(B, T, C) -> (B, T, C), for T tokens that `start` others precede.

        mask: what each token may look at, boolean, (B, 1, T, start + T), or None for all before it.
        cache: (2, B, n_head, block_size, C / n_head), the keys and values of those `start` tokens; those
        of x are written into it. Without a mask, x after cached tokens must be a single token.
        """
        B, T, C = x.shape
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            cache[0, :, :, start : start + T] = k
            cache[1, :, :, start : start + T] = v
            if start > 0:  # at 0, k and v are already all there is
                k, v = cache[:, :, :, : start + T]
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and start == 0  # a single token after others may look at all of them
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)  # (B, n_head, T, C / n_head)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads' results side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each token on its own: widen four times, GELU, narrow."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then MLP. Each reads a normalised copy of x, the residual stream, and adds its result."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, cache=None, start=0):
        """(B, T, C) -> (B, T, C); the rest as in CausalSelfAttention.forward."""
        x = x + self.attn(self.ln_1(x), mask, cache, start)
        return x + self.mlp(self.ln_2(x))


# --- choosing a token -----------------------------------------------------------------------------


def choose(logits, draws, temperature, top_k, top_p):
    """Draw one of n tokens for each row: logits (B, n), draws (B,) from [0, 1) -> (B,) int64.

    temperature, top_k (None or 0 for all) and top_p are explained in GPT.stream.
    Raises UserError if the logits are not finite numbers.
    """
    n, greedy = logits.shape[-1], temperature == 0
    # the likeliest first
    logits, order = logits.max(-1, keepdim=True) if greedy else logits.topk(min(top_k or n, n))
    if not bool(logits[:, 0].isfinite().all()):
        raise UserError("the model's scores are not finite numbers; its weights are probably damaged")
    if greedy:
        return order[:, 0]
    probs = ((logits - logits[:, :1]).double() / temperature).softmax(-1)
    cumulative = probs.cumsum(-1)
    n_allowed = (cumulative - probs < top_p).sum(-1, keepdim=True)  # the fewest that reach top_p
    reached = cumulative.gather(1, n_allowed - 1)
    # the first token whose cumulative probability exceeds a uniform draw
    at = torch.searchsorted(cumulative, draws[:, None] * reached, right=True)
    return order.gather(1, at.minimum(n_allowed - 1))[:, 0]  # rounding must not step past the last one


def penalized(logits, used, penalty):
    """Log-probabilities from logits (B, n), multiplied by `penalty` for the candidates `used` (B, T).

    In `used`, n stands for a token that is no candidate.
    """
    log_probs = F.pad(logits.log_softmax(-1), (0, 1))
    return log_probs.scatter(1, used, penalty * log_probs.gather(1, used))[:, :-1]


def uniform(seeds, n):
    """n numbers from [0, 1) for each of the seeds: (len(seeds), n)."""
    return torch.stack([torch.rand(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


# --- the model ------------------------------------------------------------------------------------


class GPT(nn.Module):
    """GPT-2: embeddings, a stack of blocks, a final LayerNorm, and a head tied to the embeddings."""

    def __init__(self, config, token_counts=None, n_rows=None):
        """token_counts: how often the token of each row occurs, (n_rows,), for `output_bias` to start from;
        n_rows: rows of wte, vocab_size if None."""
        super().__init__()
        if config.compact_vocab and n_rows is None:
            raise UserError("compact_vocab needs the tables of corpus_tables(): use make_gpt(config, tables)")
        self.config = config
        self.notes = {}  # what was saved beside the weights
        n_rows = n_rows or config.vocab_size
        self.wte = nn.Embedding(n_rows, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head_bias = nn.Parameter(torch.zeros(n_rows)) if config.output_bias else None
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # as in GPT-2: 2 * n_layer results are summed in the residual stream, so each starts smaller
                scale = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if config.output_bias and token_counts is not None:
            # log p of each row by its count alone, before reading any context; 0 counts as a half
            counts = token_counts.double().clamp(min=0.5)
            self.head_bias.data.copy_((counts / counts.sum()).log())

    # What follows up to `forward` is a line each here; SmallCorpusGPT overrides it, and `_candidates` and
    # `_scores` below. Its n-grams need the tokens themselves, so `idx` is handed on.

    def _token_vectors(self):
        """The vectors to read tokens by, (V, C), and the head that scores the next: the same, and a bias."""
        return self.wte.weight, (self.wte.weight, self.head_bias)

    def _embed(self, idx, embeddings):
        """(B, T) -> (B, T, C)."""
        return F.embedding(idx, embeddings)

    def _logits(self, hidden, head, idx):
        """Scores of all ids as the next: (B, T, C) -> (B, T, V)."""
        return F.linear(hidden, *head)

    def _loss(self, hidden, head, idx, targets):
        """The mean loss of `targets` (B, T), of which -1 are ignored."""
        return self._cross_entropy(hidden.flatten(0, 1), head, targets.flatten())

    def forward(self, idx, targets=None):
        """Predict, at each position, the next token.

        idx, targets: (B, T) int64 GPT-2 ids, T <= block_size; targets of -1 are ignored.
        Returns (logits, loss). With targets, loss is the mean negative log-likelihood over the full
        vocabulary, in nats per token, and logits is None; in training mode it is that of the network
        alone, on noised input. Without targets, logits are (B, T, vocab_size), whose log_softmax is the
        model's distribution, and loss is None.
        """
        embeddings, head = self._token_vectors()
        hidden = self._run_blocks(idx, embeddings)  # (B, T, C)
        if targets is None:
            return self._logits(hidden, head, idx), None
        return None, self._loss(hidden, head, idx, targets)

    def _run_blocks(self, idx, embeddings, cache=None, start=0):
        """The last block's output, normalised: (B, T) -> (B, T - start, C).

        idx holds all tokens so far; those from `start` on are computed, the others' keys and values are in
        `cache`.
        """
        x, mask = self._embed_and_mask(idx, embeddings, start)
        for layer, block in enumerate(self.h):
            x = block(x, mask, None if cache is None else cache[layer], start)
        return self.ln_f(x)

    def _embed_and_mask(self, idx, embeddings, start=0):
        """What enters the first block, (B, T - start, C), and the mask for attention, or None."""
        T = idx.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than block_size, {self.config.block_size}")
        position = torch.arange(T, device=idx.device)  # (T,)
        mask = None
        if self.config.separate_tweets:
            # a token's tweet begins at the last <|endoftext|> that is not after it, (B, T)
            begins = position.where(idx == END_OF_TEXT, 0).cummax(1).values
            mask = (position >= begins[..., None]) & (position <= position[:, None])  # (B, T looking, T seen)
            mask = mask[:, None, start:]  # (B, 1, T - start, T): the same for all heads
            position = position - begins  # (B, T), counted from there
        return self.drop(self._embed(idx[:, start:], embeddings) + self.wpe(position[..., start:])), mask

    # --- looking inside -------------------------------------------------------------------------------

    @torch.no_grad()
    def log_probs(self, idx):
        """The log-probability of every id after each token: (B, T) -> (B, T, vocab_size)."""
        logits = self(idx)[0]
        # not log_softmax, which on a CPU with AVX2 loses 1e-4 where many logits are small and equal
        return logits - logits.logsumexp(-1, keepdim=True)

    @torch.no_grad()
    def attention_maps(self, idx):
        """How much each token looked at each: (B, T) -> (n_layer, B, n_head, T, T); rows sum to 1."""
        x, mask = self._embed_and_mask(idx, self._token_vectors()[0])
        maps = []
        for block in self.h:
            maps.append(block.attn.weights(block.ln_1(x), mask))
            x = block(x, mask)
        return torch.stack(maps)

    # --- from probabilities to text ---------------------------------------------------------------

    def _candidates(self):
        """The ids that may be written, (n,)."""
        return torch.arange(self.config.vocab_size, device=self.wte.weight.device)

    def _scores(self, hidden, head, idx):
        """Logits of the candidates: (B, 1, C) after all of idx (B, T) -> (B, n)."""
        return self._logits(hidden, head, idx)[:, 0]

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, stop_token=None, **how):
        """Continue each row of idx (B, T) by up to max_new_tokens: (B, T + new); arguments as in `stream`."""
        stream = self.stream(idx, max_new_tokens, temperature, top_k, stop_token=stop_token, **how)
        return torch.cat([idx, *(fresh[:, None] for fresh in stream)], 1)

    @torch.inference_mode()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=1.0, repetition_penalty=1.0,
               stop_token=None, seeds=None):  # fmt: skip
        """Yield the tokens that continue the rows of idx (B, T), step by step: up to max_new_tokens of (B,).

        Each token's log-probability is multiplied by `repetition_penalty` if the row holds it already
        (after Keskar et al. 2019) and divided by `temperature`, where 0 takes the likeliest; then one
        is drawn among the `top_k` likeliest and, of these, the smallest set whose probability reaches
        `top_p` (Holtzman et al. 2020). Once a row has produced `stop_token`, it repeats it, and the stream
        ends when all rows have. `seeds`, one for each row, make a row's draws independent of its batch.

        Keys and values are kept, so each step reads one token. Positions are learned only up to
        block_size: when the cache is full, the newest half is read again, and generation continues.
        """
        config, device, n_rows = self.config, idx.device, len(idx)
        seeds = torch.randint(2**62, (n_rows,)).tolist() if seeds is None else seeds
        # On CPUs, products of fewer than four rows round differently from larger ones (with several threads,
        # those of five to seven may as well), so a tweet would depend on how many are written at once. So
        # write at least four, repeating some.
        rows = [row % n_rows for row in range(max(n_rows, 4))]
        text = idx[rows]  # (B, T), grows
        draws = uniform([seeds[row] for row in rows], max_new_tokens).to(device)  # (B, max_new_tokens)

        embeddings, head = self._token_vectors()
        ids = self._candidates()  # (n,)
        candidate_of = torch.full((config.vocab_size,), len(ids), device=device)  # n: not a candidate
        candidate_of[ids] = torch.arange(len(ids), device=device)
        shape = (
            config.n_layer,
            2,
            len(text),
            config.n_head,
            config.block_size,
            config.n_embd // config.n_head,
        )
        cache = torch.zeros(shape, device=device, dtype=self.wte.weight.dtype)
        window = text[:, -config.block_size :]  # what the next token depends on
        start = 0  # how many tokens of it are in the cache
        if bool((window == window[:1]).all()):
            window = window[:1]  # one prompt for all: read it once, and let the cache repeat it
        finished = torch.zeros(len(text), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            # read what is new in the window
            hidden = self._run_blocks(window, embeddings, cache, start)[:, -1:].expand(len(text), -1, -1)
            start = window.shape[1]
            # score every token that may come next
            scores = self._scores(hidden, head, text)  # (B, n)
            if step == 0 and stop_token is not None:  # do not end a text before it has begun
                scores = scores.masked_fill((ids == stop_token) & (text[:, -1:] == stop_token), -math.inf)
            if repetition_penalty != 1.0:
                scores = penalized(scores, candidate_of[text], repetition_penalty)
            # draw one
            token = ids[choose(scores, draws[:, step], temperature, top_k, top_p)]
            if stop_token is not None:
                token = token.where(~finished, stop_token)
                finished |= token == stop_token
            yield token[:n_rows]
            if stop_token is not None and bool(finished.all()):
                return
            # append it
            text = torch.cat([text, token[:, None]], 1)
            if start == config.block_size:  # full: read the newest half anew
                start = 0
                window = text[:, -max(config.block_size // 2, 1) :]
            else:
                window = text[:, -(start + 1) :]

    # --- memory and speed -------------------------------------------------------------------------

    def _cross_entropy(self, hidden, head, targets, reduction="mean"):
        """-log p of each target's row of the head: hidden (N, C), targets (N,), of which -1 are ignored."""
        weight, bias = head
        if self.training and torch.is_autocast_enabled(targets.device.type):
            dtype = torch.get_autocast_dtype(targets.device.type)
            return HalfPrecisionCrossEntropy.apply(hidden, weight, bias, targets, dtype)
        return F.linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, ignore_index=-1, reduction=reduction,
            options=LOSS_OPTIONS,
        )  # fmt: skip

    # --- from and to files ------------------------------------------------------------------------

    def save(self, path, **notes):
        """Write weights and config to `path`, whole or not at all; `notes` (plain values) go beside them."""
        with written_whole(path, "wb") as file:
            torch.save(self.checkpoint(**notes), file)

    def checkpoint(self, **notes):
        """What `save` writes: a dictionary of plain values and tensors."""
        config, state = dataclasses.asdict(self.config), self.state_dict()
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
        return {"format": CHECKPOINT_FORMAT, "config": config, "model": state, "notes": notes}

    @classmethod
    def load(cls, path, device="cpu"):
        """Read what `save` wrote; `model.notes` holds the notes. No code from the file is run.

        Raises UserError when the file is missing, damaged, or not such a checkpoint.
        """
        return cls.from_checkpoint(read_checkpoint(path), path).to(device).eval()

    @classmethod
    def from_checkpoint(cls, checkpoint, path):
        """The model in what read_checkpoint gave for `path`, as it was when it was saved."""
        try:
            config, state, notes = GPTConfig(**checkpoint["config"]), checkpoint["model"], checkpoint["notes"]
            tables = checked_tables(config, state)
            model = make_gpt(config, tables)
            model.load_state_dict(state)
            model.notes = dict(notes)
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} does not hold a model that fits its config: {error}") from None
        return model

    @classmethod
    def from_pretrained(cls, name_or_path, **changes):
        """A model with GPT-2's weights, in evaluation mode.

        name_or_path: gpt2, gpt2-medium, gpt2-large or gpt2-xl, which are downloaded once; or a Hugging
        Face folder, its pytorch_model.bin or its model.safetensors. `changes` replace entries of the
        config: a smaller block_size, dropout, separate_tweets. Raises UserError if that is impossible.
        """
        weights, config_json = read_pretrained(name_or_path)
        weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        try:
            config = pretrained_config(weights, config_json)
            if changes.get("block_size", 0) > config.block_size:
                raise UserError(
                    f"a block_size of {changes['block_size']} is more than its {config.block_size}"
                )
            model = cls(dataclasses.replace(config, **changes))
            state = {name: weights.get(name) for name in model.state_dict()}
            if missing := [name for name, tensor in state.items() if not isinstance(tensor, torch.Tensor)]:
                raise UserError(f"it lacks the weight {missing[0]}")
            for name, tensor in state.items():
                # OpenAI's code stored the matrices of attention and MLP as (in, out); Linear wants (out, in)
                state[name] = tensor.t() if name.startswith("h.") and tensor.dim() == 2 else tensor
            state["wpe.weight"] = state["wpe.weight"][: model.config.block_size]
            model.load_state_dict(state)
        except (OSError, LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UserError(f"{name_or_path} is not a usable GPT-2: {error}") from None
        return model.eval()


# --- a faster loss --------------------------------------------------------------------------------


class HalfPrecisionCrossEntropy(torch.autograd.Function):
    """F.linear_cross_entropy in bfloat16 or float16; only the loss and the gradients are summed in float32.

    The gradient of the logits is softmax(logits) minus 1 at the target, so the gradients are computed
    along with the loss, for 512 positions at a time, or as many more as make 2**23 logits (16 MB).
    """

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, dtype):
        """hidden (N, C), head (rows, C), bias (rows,) or None, targets (N,) -> the mean loss, float32.

        Targets of -1 are multiplied by 0, because filtering them out would stall a GPU.
        """
        head_t, rows, counted = head.to(dtype).t(), len(head), (targets >= 0)[:, None]  # (C, rows), …, (N, 1)
        log_probs, d_hidden = hidden.new_empty(len(hidden)), torch.empty_like(hidden)
        d_head, d_bias = torch.zeros_like(head), None if bias is None else torch.zeros_like(bias)
        size = min(len(hidden), max(512, 2**23 // rows))
        buffer = head_t.new_empty(size, rows)
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            inputs, target = hidden[part].to(dtype), targets[part].clamp(min=0)
            probs, at = buffer[: len(inputs)], (torch.arange(len(inputs), device=target.device), target)
            for x, p in zip(inputs.split(128), probs.split(128), strict=True):  # logits that fit the cache
                torch.mm(x, head_t, out=p)
                torch.softmax(p if bias is None else p.add_(bias), -1, out=p)
            # in float16 a probability below 6e-8 is 0
            log_probs[part] = probs[at].float().clamp(min=1e-8).log()
            probs[at] -= 1  # scatter_add_ would copy all of it
            mask = counted[part].to(dtype)
            d_hidden[part] = (probs @ head_t.t()) * mask
            d_head += probs.t() @ (inputs * mask)
            if bias is not None:
                d_bias += (probs.t() @ mask)[:, 0]
        ctx.save_for_backward(d_hidden, d_head, d_bias, counted.sum())
        return -(log_probs * counted[:, 0]).sum() / counted.sum()

    @staticmethod
    def backward(ctx, gradient):
        *gradients, n = ctx.saved_tensors  # scaled in place: backward runs only once
        return *(d if d is None else d.mul_(gradient / n) for d in gradients), None, None


# --- what a small corpus needs --------------------------------------------------------------------


def make_gpt(config, tables=None):
    """The GPT that `config` describes, with random weights.

    tables: what corpus_tables() made; compact_vocab raises UserError without them, and output_bias then
    starts at 0.
    """
    if config.compact_vocab:
        return SmallCorpusGPT(config, tables)
    return GPT(config, (tables or {}).get("token_counts"))


class SmallCorpusGPT(GPT):
    """A GPT with a compact vocabulary, spelling vectors, input noise and an n-gram model.

    Tokens that the training data holds once or never share one row, "rare". Those that occur once, the
    singletons, then teach where to expect a new token. Let N1 tokens occur once in the training data and
    N2 twice. By Good and Turing (Good 1953, "The Population Frequencies of Species"), new text of the same
    length contains 2 * N2 of the singletons and N1 tokens that never occurred: rare tokens are
    (N1 + 2 * N2) / N1 times as frequent there, and 2 * N2 / (N1 + 2 * N2) of them are singletons.
    Within each part, groups of tokens that look alike are scored from context (`spelling`), or all tokens
    are equally likely.

    Inside, a token is known by its place in `id_of_place`: below n_kept it has a row of its own, below
    n_seen it occurred once, and the rest never occurred. So there are four ways to count tokens: ids are
    GPT-2's; places put them in that order; rows are places with all from n_kept on as one; symbols, which
    the n-grams know, are places with all from n_seen on as one.

    The tables: token_counts (vocab_size,) of each id; id_of_place (vocab_size,); spelling, the pieces of
    all places end to end, of which spelling_ends[i] : spelling_ends[i + 1] are those of place i; group_of
    (vocab_size - n_kept,), the group of each rare place; group_features (groups, features).
    """

    def __init__(self, config, tables):
        if not tables:
            raise UserError("compact_vocab needs the tables that corpus_tables() makes")
        counts = tables["token_counts"]
        n_kept, n_once = int((counts >= 2).sum()), int((counts == 1).sum())
        rows = counts[tables["id_of_place"][:n_kept]]
        super().__init__(config, torch.cat([rows, rows.new_tensor([n_once])]), n_kept + 1)
        self.n_kept, self.n_seen = n_kept, n_kept + n_once
        if "group_of" not in tables:  # one group, all as likely
            group_of = torch.zeros(config.vocab_size - n_kept, dtype=torch.int64)
            tables = tables | {"group_of": group_of, "group_features": torch.zeros(1, 1)}
        self.rare = nn.Linear(config.n_embd, tables["group_features"].shape[1])
        nn.init.zeros_(self.rare.weight)
        nn.init.zeros_(self.rare.bias)
        ngrams = {name: table for name, table in tables.items() if name[-1].isdigit()}
        self.ngrams = NGrams(ngrams) if config.ngram_order else None
        self.tables = nn.Module()
        for name, table in tables.items():  # in this order in every process: DDP goes by it
            if name not in ngrams:
                self.tables.register_buffer(name, table)
        self.spell = None
        if config.spelling:
            self.spell = nn.Embedding(config.spelling, config.n_embd)
            nn.init.normal_(self.spell.weight, std=0.02)
            self.n_seen_pieces = int(tables["spelling_ends"][self.n_seen])
        self._derive(counts, n_once)

    def _derive(self, counts, n_once):
        """Compute what follows from the tables and so need not be saved."""

        def keep(name, table):
            self.tables.register_buffer(name, table, persistent=False)

        once, twice = float(n_once), float((counts == 2).sum())
        expected = max(once + 2 * twice, 1.0)  # rare tokens in as much new text, where training counts `once`
        share = 2 * twice / expected  # of the singletons among them
        self.log_once_share, self.log_unseen_share = (math.log(max(x, 1e-9)) for x in (share, 1 - share))
        self.rare_boost = math.log(expected / max(once, 1.0))
        group_of, n_groups = self.tables.group_of, len(self.tables.group_features)
        for name, part in (("rare", group_of), ("once", group_of[:n_once]), ("unseen", group_of[n_once:])):
            keep(f"log_{name}", torch.bincount(part, minlength=n_groups).float().log())
        keep("place_of_id", torch.argsort(self.tables.id_of_place))
        if self.config.noise:
            pairs, n_symbols = self.ngrams.keys2, self.ngrams.n_symbols
            followers = torch.bincount(pairs // n_symbols, minlength=n_symbols)[: self.n_seen]
            chance = self.config.noise * followers / counts[self.tables.id_of_place[: self.n_seen]]
            keep("noise_chance", F.pad(chance, (0, self.config.vocab_size - self.n_seen)))
            keep("noise", pairs % n_symbols)  # one per pair, so a draw favours what follows many others

    # from ids to vectors

    def _token_vectors(self):
        """As in GPT. With spelling, a token has the sum of its n pieces' vectors, over sqrt(n), on top."""
        embeddings = rows = self.wte.weight
        if self.spell is not None:
            ends, pieces = self.tables.spelling_ends, self.tables.spelling
            if self.training:  # in which unseen tokens never occur
                ends, pieces = ends[: self.n_seen + 1], pieces[: self.n_seen_pieces]
            total = F.embedding_bag(pieces, self.spell.weight, ends, mode="sum", include_last_offset=True)
            from_pieces = total / ends.diff().sqrt()[:, None]  # (places, C)
            rare = rows[-1:].expand(len(from_pieces) - self.n_kept, -1)
            embeddings = torch.cat([rows[:-1], rare]) + from_pieces
        bias = self.head_bias
        if not self.training:
            boost = F.pad(rows.new_zeros(self.n_kept), (0, 1), value=self.rare_boost)
            bias = boost if bias is None else bias + boost
        return embeddings, (torch.cat([embeddings[: self.n_kept], rows[-1:]]), bias)

    def _embed(self, idx, embeddings):
        places = self.tables.place_of_id[idx]
        if self.training and self.config.noise:
            places = self._noised(places)
        # without spelling there are n_kept + 1 rows, of which the last is "rare"
        return F.embedding(places.clamp(max=len(embeddings) - 1), embeddings)

    def _noised(self, places):
        """Replace some places at random, more often those whose followers seldom repeat: (B, T) -> (B, T).

        After Xie et al. 2017, "Data Noising as Smoothing in Neural Network Language Models": the chance
        grows with the share of distinct followers, and the draw is from Kneser-Ney's lowest order. Only
        what the network reads is noised, never what it is to predict.
        """
        drawn = torch.randint(len(self.tables.noise), places.shape, device=places.device)
        hit = torch.rand(places.shape, device=places.device) < self.tables.noise_chance[places]
        return self.tables.noise[drawn].where(hit, places)

    # from what the network has read to probabilities

    def _loss(self, hidden, head, idx, targets):
        """As in GPT. A rare token's log-probability is the sum of three: of the row "rare", of its part
        (the singletons or the unseen) in that row, and of itself among this part."""
        tables, valid = self.tables, (targets >= 0).flatten()
        hidden, target = hidden.flatten(0, 1), tables.place_of_id[targets.clamp(min=0)]  # (B * T, C), (B, T)
        flat = target.flatten()
        row = flat.clamp(max=self.n_kept).where(valid, -1)
        if self.training:
            loss = self._cross_entropy(hidden, head, row)
            _, among = self._among_rare(row == self.n_kept, tables.log_rare, hidden, flat)
            return loss - among.sum() / valid.sum()
        log_probs = hidden.new_zeros(len(hidden))  # of what is not scored, for which the head need not work
        log_probs[valid] = -self._cross_entropy(hidden[valid], head, row[valid], reduction="none")
        once = (flat >= self.n_kept) & (flat < self.n_seen)
        at, among = self._among_rare(once, tables.log_once, hidden, flat)
        log_probs[at] += self.log_once_share + among
        at, among = self._among_rare(flat >= self.n_seen, tables.log_unseen, hidden, flat)
        log_probs[at] += self.log_unseen_share
        log_probs = self._mixed(log_probs.view(target.shape), tables.place_of_id[idx], target).flatten()
        log_probs[at] += among  # the n-grams know all unseen tokens as one, so this comes after them
        return -log_probs[valid].mean()

    def _among_rare(self, part, log_sizes, hidden, places):
        """Where `part` (N,) is true, and the log-probability of each place there among the rare of it."""
        (at,) = part.nonzero(as_tuple=True)
        group = self.tables.group_of[places[at] - self.n_kept]
        return at, self._rare_log_probs(hidden[at], log_sizes).gather(1, group[:, None])[:, 0]

    def _rare_log_probs(self, hidden, log_sizes):
        """The log-probability of one token of each group, given the groups' sizes: (…, C) -> (…, groups)."""
        scores = self.rare(hidden) @ self.tables.group_features.T
        return scores - (scores + log_sizes).logsumexp(-1, keepdim=True)

    def _mixed(self, log_probs, places, targets=None):
        """Mix in what the n-grams predict after the last T' of places (B, T).

        log_probs: of each seen token and of all unseen ones together, (B, T', n_seen + 1), or (B, T')
        those of the places `targets` (B, T').
        """
        if self.ngrams is None:
            return log_probs
        T, weight = log_probs.shape[1], self.config.ngram_weight
        contexts = self.ngrams.contexts(places[:, -T - self.ngrams.order + 2 :].clamp(max=self.n_seen))
        targets = None if targets is None else targets.clamp(max=self.n_seen)
        counted = self.ngrams([context[:, -T:] for context in contexts], targets).log()
        return torch.logaddexp(log_probs + math.log(1 - weight), counted + math.log(weight))

    def _symbols(self, hidden, head, idx):
        """Log-probabilities of the seen tokens by place, and last of all unseen ones together.

        hidden (B, T', C) at the last T' of idx (B, T) -> (B, T', n_seen + 1).
        """
        rows = F.linear(hidden, *head).log_softmax(-1)
        kept, rare = rows[..., :-1], rows[..., -1:]
        group_of_once = self.tables.group_of[: self.n_seen - self.n_kept]
        once = self._rare_log_probs(hidden, self.tables.log_once)[..., group_of_once]
        symbols = torch.cat([kept, once + rare + self.log_once_share, rare + self.log_unseen_share], -1)
        return self._mixed(symbols, self.tables.place_of_id[idx])

    def _logits(self, hidden, head, idx):
        symbols = self._symbols(hidden, head, idx)
        group_of_unseen = self.tables.group_of[self.n_seen - self.n_kept :]
        unseen = self._rare_log_probs(hidden, self.tables.log_unseen)[..., group_of_unseen]
        by_place = torch.cat([symbols[..., :-1], symbols[..., -1:] + unseen], -1)
        return by_place[..., self.tables.place_of_id]

    def _candidates(self):
        return self.tables.id_of_place[: self.n_seen]

    def _scores(self, hidden, head, idx):
        return self._symbols(hidden, head, idx)[:, 0, :-1]


class NGrams(nn.Module):
    """An n-gram model: how often each token followed the last few ones in the training data.

    Interpolated modified Kneser-Ney (Chen & Goodman 1999, "An Empirical Study of Smoothing Techniques
    for Language Modeling"): each order discounts its counts and gives the probability that this frees to
    the order below, which counts in how many contexts a token occurs instead of how often.

    Tokens are numbers below `n_seen`; n_seen itself stands for all that were never seen, and gets what the
    lowest order freed. An n-gram is known by its place in `keys`, a sorted list of (place of all but its
    last token) * (n_seen + 1) + last token, so all that follows a context is side by side: "a b c" has the
    key i * (n_seen + 1) + c in keys3, where i is the place of "a b" in keys2. probs3 holds its discounted
    probability after "a b", and backoff3 at i what is left after "a b" for the order below.
    """

    def __init__(self, tables):
        super().__init__()
        self.order = len(tables) // 3
        self.n_symbols = len(tables["keys1"])
        for name, table in tables.items():
            self.register_buffer(name, table)

    @staticmethod
    def count(tokens, n_seen, order):
        """The tables for the training data `tokens`, (N,) int64 below n_seen."""
        n_symbols = n_seen + 1
        keys, counts = [torch.arange(n_symbols)], [torch.bincount(tokens, minlength=n_symbols)]
        ending = tokens  # the place of the (k - 1)-gram that ends at each token, from the (k - 1)-th on
        for k in range(2, order + 1):
            extended = ending[:-1] * n_symbols + tokens[k - 1 :]
            key, place, count = torch.unique(extended, return_inverse=True, return_counts=True)
            # each without its first token; the order below counts those, and not how often they occur
            shorter = torch.zeros_like(key).scatter_(0, place, ending[1:])
            counts[-1] = torch.bincount(shorter, minlength=len(keys[-1]))
            keys.append(key)
            counts.append(count)
            ending = place
        tables, n_contexts = {}, 1
        for k, (key, count) in enumerate(zip(keys, counts, strict=True), 1):
            context = key // n_symbols
            n_with = [max(float((count == c).sum()), 1.0) for c in range(5)]  # n-grams that occur c times
            y = n_with[1] / (n_with[1] + 2 * n_with[2])
            discounts = torch.tensor([c - (c + 1) * y * n_with[c + 1] / n_with[c] for c in (1, 2, 3)])
            # tiny data can make a discount 0 or less, which would leave nothing for the order below
            saved = F.pad(discounts.clamp(min=0.1), (1, 0))[count.clamp(max=3)]
            total = torch.bincount(context, count, n_contexts)  # 0: nothing follows, or only at the beginning
            backoff = torch.bincount(context, saved, n_contexts) / total
            tables[f"keys{k}"] = key
            tables[f"probs{k}"] = ((count - saved) / total[context].clamp(min=1)).float()
            tables[f"backoff{k}"] = backoff.where(total > 0, 1.0).float()
            n_contexts = len(key)
        tables["probs1"][n_seen] = tables["backoff1"][0]  # all unseen tokens together
        return tables

    def contexts(self, tokens):
        """The places of the 1-gram up to the (order - 1)-gram that end at each token, or -1: (B, T) each."""
        found = [tokens]
        for k in range(2, self.order):
            before = F.pad(found[-1][:, :-1], (1, 0), value=-1)
            found.append(self._find(self.get_buffer(f"keys{k}"), before, tokens))
        return found

    def forward(self, contexts, targets=None):
        """The probability of all tokens after `contexts`, (B, T, n_seen + 1), or of `targets`, (B, T)."""
        probs = self.probs1.expand(*contexts[0].shape, -1) if targets is None else self.probs1[targets]
        for k, context in enumerate(contexts, 2):
            keys, values = self.get_buffer(f"keys{k}"), self.get_buffer(f"probs{k}")
            weight = self.get_buffer(f"backoff{k}")[context].where(context >= 0, 1.0)
            if targets is None:
                probs = probs * weight[..., None]
                # all that follows a context is in keys[first : first + count]; add it to the context's row
                first = torch.searchsorted(keys, context.flatten() * self.n_symbols)
                count = torch.searchsorted(keys, (context.flatten() + 1) * self.n_symbols) - first
                position = torch.arange(len(count), device=keys.device).repeat_interleave(count)
                place = torch.arange(len(position), device=keys.device)
                place = place + (first - count.cumsum(0) + count)[position]
                probs.flatten(0, 1)[position, keys[place] % self.n_symbols] += values[place]
            else:
                place = self._find(keys, context, targets)
                probs = probs * weight + values[place].where(place >= 0, 0.0)
        return probs

    def _find(self, keys, context, token):
        """The place of the n-gram `context` + `token`; -1 where it, or the context, never occurred."""
        wanted = context * self.n_symbols + token
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return place.where(keys[place] == wanted, -1)


def corpus_tables(config, token_counts, texts=None, tokens=None):
    """The tables of its training data that a model with a compact vocabulary needs before training.

    token_counts: (vocab_size,) how often each id occurs; texts: the text of each id, for `spelling`;
    tokens: (N,) int64 ids of the training data, for `ngram_order`. Returns tensors by name, for make_gpt().
    """
    counts = torch.as_tensor(token_counts, dtype=torch.int64)
    # kept tokens first, then those that occur once, then the unseen ones: a token's place tells its kind
    id_of_place = counts.clamp(max=2).argsort(descending=True, stable=True)
    tables = {"token_counts": counts, "id_of_place": id_of_place}
    if config.spelling:
        ordered = [texts[i] for i in id_of_place.tolist()]
        pieces = [[zlib.crc32(piece.encode()) % config.spelling for piece in spelled(t)] for t in ordered]
        lengths = torch.tensor([0, *map(len, pieces)])
        tables["spelling"] = torch.tensor([p for token in pieces for p in token], dtype=torch.int32)
        tables["spelling_ends"] = lengths.cumsum(0).int()
        tables |= rare_groups(ordered, id_of_place.tolist(), counts[id_of_place].tolist())
    if config.ngram_order:
        place_of_id = torch.argsort(id_of_place)
        tables |= NGrams.count(place_of_id[tokens], int((counts >= 1).sum()), config.ngram_order)
    return tables


def spelled(text):
    """The pieces that a token's vector is made of: 3 to 5 letters in a row, the word, and its looks.

    The idea is fastText's (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information").
    """
    word = word_of(text)
    framed = f"<{word}>"
    grams = [framed[at : at + size] for size in (3, 4, 5) for at in range(len(framed) - size + 1)]
    return [*grams, f"word {word}", f"looks {looks(text)}"]


def word_of(text):
    return text.strip().casefold()


def looks(text):
    """A token's look: the kind of its letters, with a mark for a leading space: "Capital ", "digits", …"""
    bare = text.strip()
    kinds = {
        "space": not bare,
        "bytes": "\ufffd" in bare,
        "lower": bare.islower(),
        "UPPER": bare.isupper() and len(bare) > 1,
        "Capital": bare[:1].isupper(),
        "digits": bare.isdigit(),
        "other": True,
    }
    return next(kind for kind, fits in kinds.items() if fits) + " " * text.startswith(" ")


def rare_groups(texts, ids, counts):
    """Group the tokens with a count below 2 that look alike, so that one score serves a group.

    A group shares looks, GPT-2's merge rank (what is frequent in English is low), how often the word
    occurs in other forms, and length. Returns the group of each rare token, in order, and the features of
    each group: one-hot, and the rank once more for each kind of looks.
    """
    forms = collections.Counter()
    for text, count in zip(texts, counts, strict=True):
        forms[word_of(text)] += count
    kinds = sorted({looks(text) for text in texts})
    described = []
    for text, token, count in zip(texts, ids, counts, strict=True):
        if count < 2:
            rank = int(2 * math.log2(token / 300 + 1))
            others = min(int(math.log2(forms[word_of(text)] - count + 1)), 3)
            described.append((kinds.index(looks(text)), rank, others, min(len(text), 8)))
    groups, group_of = torch.unique(torch.tensor(described), dim=0, return_inverse=True)
    kind = F.one_hot(groups[:, 0], len(kinds)).float()
    one_hot = [F.one_hot(groups[:, column]).float() for column in (1, 2, 3)]
    return {"group_of": group_of, "group_features": torch.cat([kind, kind * groups[:, 1:2] / 8, *one_hot], 1)}


# --- files and devices ----------------------------------------------------------------------------


def read_tensors(path):
    """The dictionary in a file that torch.save wrote, on the CPU, without running code that it may hold."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; run train.py first") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # the unpickler fails in many ways on damaged files
        why = (str(error) or type(error).__name__).split(". ")[0].split("\n")[0]
        raise UserError(f"{path} is damaged or holds more than tensors: {why}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} does not contain a dictionary of tensors")
    return found


def read_checkpoint(path):
    """The dictionary in a checkpoint of this program; raises UserError when it cannot be read or trusted."""
    checkpoint = read_tensors(path)
    if checkpoint.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program (format {CHECKPOINT_FORMAT})")
    return checkpoint


def checked_tables(config, state):
    """The tables among the tensors of a checkpoint, which may be damaged or hostile.

    Raises ValueError if they, or the weights, would fail later or need more memory than the file's size.
    """

    def demand(fits, name):
        if not fits:
            raise ValueError(f"{name} is damaged or of another model")

    def numbers(name, size, low, high, dtype=torch.int64):
        """The table `name`, if it has `size` numbers from low to high."""
        table = tables[name]
        demand(table.dtype == dtype and table.shape == (size,), name)
        demand(not size or (low <= table.min() and table.max() <= high), name)
        return table

    for name, tensor in state.items():
        demand(tensor.layout == torch.strided and tensor.is_contiguous(), name)  # has all its memory
        demand(tensor.dtype in (torch.float32, torch.int64, torch.int32), name)
        demand(not tensor.is_floating_point() or tensor.isfinite().all(), name)
    storages = {tensor.untyped_storage().data_ptr() for tensor in state.values() if tensor.numel()}
    demand(len(storages) == sum(tensor.numel() > 0 for tensor in state.values()), "memory that is shared")
    C = config.n_embd
    demand(state["wpe.weight"].shape == (config.block_size, C), "wpe.weight")
    matrices = {
        "attn.c_attn": (3 * C, C),
        "attn.c_proj": (C, C),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    for layer in range(config.n_layer):
        for name, shape in matrices.items():
            demand(state[f"h.{layer}.{name}.weight"].shape == shape, f"h.{layer}.{name}.weight")
    prefixes = ("tables.", "ngrams.")
    tables = {name.split(".", 1)[1]: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    if not config.compact_vocab:
        demand(len(state["wte.weight"]) == config.vocab_size, "wte.weight")
        return tables
    n = config.vocab_size
    counts, order = numbers("token_counts", n, 0, 2**40), numbers("id_of_place", n, 0, n - 1)
    kinds = counts[order].clamp(max=2)
    demand(order.bincount().eq(1).all() and (kinds.diff() <= 0).all(), "id_of_place")
    numbers("group_of", int((counts < 2).sum()), 0, len(tables["group_features"]) - 1)
    if config.spelling:
        n_pieces = len(tables["spelling"])
        ends = numbers("spelling_ends", n + 1, 0, n_pieces, torch.int32)
        demand((ends.diff() > 0).all() and ends[-1] == n_pieces, "spelling_ends")
        numbers("spelling", n_pieces, 0, config.spelling - 1, torch.int32)
        demand(len(state["spell.weight"]) == config.spelling, "spell.weight")
    n_symbols, n_contexts = int((counts > 0).sum()) + 1, 1
    for k in range(1, config.ngram_order + 1):
        n_grams = len(tables[f"keys{k}"])
        keys = numbers(f"keys{k}", n_grams, 0, n_contexts * n_symbols - 1)
        demand((keys.diff() > 0).all() and (k > 1 or n_grams == n_symbols), f"keys{k}")
        numbers(f"probs{k}", n_grams, 0, 1, torch.float32)
        numbers(f"backoff{k}", n_contexts, 0, 1, torch.float32)
        n_contexts = n_grams
    return tables


def pretrained_config(weights, path):
    """The GPTConfig of a GPT-2 with these tensors; `path` is that of its config.json, which may be missing.

    Raises UserError for relatives of GPT-2, which compute something else with the same tensors.
    """
    theirs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    vocab_size, n_embd = weights["wte.weight"].shape
    shape = {
        "n_positions": len(weights["wpe.weight"]),
        "n_layer": sum(name.endswith(".ln_1.weight") for name in weights),
        "n_embd": n_embd,
    }
    gelu = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
    as_gpt2 = shape | {
        "vocab_size": GPTConfig.vocab_size, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    }  # fmt: skip
    for name, value in as_gpt2.items():
        if theirs.get(name, value) != value:
            raise UserError(f"{name} is {theirs[name]} in its config.json, where {value} was expected")
    if vocab_size != GPTConfig.vocab_size:
        raise UserError(f"it has {vocab_size:,} tokens, not GPT-2's {GPTConfig.vocab_size:,}")
    if (form := theirs.get("activation_function", "gelu_new")) not in gelu:
        raise UserError(f"its activation_function is {form}, none of {', '.join(gelu)}")
    return GPTConfig(
        block_size=shape["n_positions"],
        n_layer=shape["n_layer"],
        n_head=theirs.get("n_head", n_embd // 64),  # as in all that OpenAI published
        n_embd=n_embd,
        dropout=float(theirs.get("resid_pdrop", 0.1)),
        gelu=gelu[form],
    )


def read_pretrained(name_or_path):
    """(tensors by name, path of the config.json that may be beside them) of a GPT-2."""
    path = pathlib.Path(name_or_path)
    if str(name_or_path) in PRETRAINED and not path.exists():
        url = f"https://huggingface.co/openai-community/{name_or_path}/resolve/main/pytorch_model.bin"
        try:
            weights = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", file_name=f"{name_or_path}.bin", weights_only=True
            )
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{name_or_path} could not be downloaded ({error}); fetch {url} by other means, then name "
                f"the file instead of {name_or_path}"
            ) from None
        return weights, pathlib.Path(torch.hub.get_dir()) / "no config.json"
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        found = [file for file in found if file.exists()]
        if not found:
            raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = found[0] if importlib.util.find_spec("safetensors") else found[-1]
    if not path.exists():
        raise UserError(f"{path} does not exist; name a file, a folder or one of {', '.join(PRETRAINED)}")
    if path.suffix != ".safetensors":
        return read_tensors(path), path.parent / "config.json"
    try:
        import safetensors.torch

        return safetensors.torch.load_file(path), path.parent / "config.json"
    except ImportError:
        raise UserError(f"to read {path}, `pip install safetensors`") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def choose_device(name):
    """The torch.device called `name`, or for "auto" a GPU if one is here; UserError if it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
