"""A compact GPT-2: the model that train.py trains and sample.py writes with.

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128))
    logits, loss = model(idx, targets)                 # idx, targets: (B, T) int64 GPT-2 token ids
    tokens = model.generate(idx, max_new_tokens=40)    # (B, T + 40)
    model = GPT.load("out/best.pt")

In the shapes below B is the batch, T the time (tokens), C the channels (n_embd), V the vocabulary.
Read it from the top: attention, MLP, block, then the GPT that stacks them. Ids at the border of this
file are always GPT-2's, also where the model keeps only some of them (`compact_vocab`).
"""

import dataclasses
import json
import math
import pathlib
import pickle
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from config import UserError, written_whole

CHECKPOINT_FORMAT = 1
# 512 positions of logits at a time: the whole (B * T, V) is never held, and backward needs no second pass
LOSS_OPTIONS = nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; raises UserError (a ValueError) for values that fit no model."""

    block_size: int = 64  # the most tokens it can look back on
    vocab_size: int = 50257
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    bias: bool = True  # in Linear and LayerNorm, as GPT-2 has it
    gelu: str = "exact"  # or "tanh", the approximation that GPT-2's weights were trained with
    compact_vocab: bool = False  # one row for each token seen in training, one shared by all others
    output_bias: bool = False  # a bias for each row of the head, started at the log of its frequency
    unseen_chance: float = 0.0  # of training a token that occurs once as if it were unseen

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise UserError(f"{field.name}: {value!r} is not of type {field.type.__name__}")
            if field.type is int and value < 1:
                raise UserError(f"{field.name}: {value} is too small; it must be at least 1")
            if field.type is float and not 0 <= value < 1:
                raise UserError(f"{field.name}: {value} is out of range; it must lie in [0, 1)")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.gelu not in ("exact", "tanh"):
            raise UserError(f"gelu: {self.gelu!r} is not one of exact, tanh")


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and the tokens before it, in n_head different ways at once."""

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
        return self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x, cache=None, start=0):
        """(B, T, C) -> (B, T, C). `cache` holds keys and values (2, B, n_head, block_size, C / n_head)
        of the `start` tokens before x, and takes those of x."""
        B, T, C = x.shape
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            cache[0, :, :, start : start + T] = k
            cache[1, :, :, start : start + T] = v
            if start > 0:  # then T is 1, and the one query may look at everything
                k, v = cache[:, :, :, : start + T]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=start == 0)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads' results side by side
        return self.resid_dropout(self.c_proj(y))

    def weights(self, x):
        """How much each token looks at each: (B, T, C) -> (B, n_head, T, T), rows sum to 1."""
        q, k, _ = self.queries_keys_values(x)
        T = x.shape[1]
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return scores.masked_fill(future, -math.inf).softmax(-1)


class MLP(nn.Module):
    """What a token makes of what it has gathered, on its own: widen four times, GELU, narrow."""

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
    """Attention, then MLP; each adds to the residual stream x what it computes from a normalised copy."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, start=0):
        """(B, T, C) -> (B, T, C); `cache` and `start` as in CausalSelfAttention.forward."""
        x = x + self.attn(self.ln_1(x), cache, start)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: embeddings, a stack of blocks, a final LayerNorm, and a head tied to the embeddings.

    `token_counts` (vocab_size,) says how often each id occurs in the training data. It is needed for
    `compact_vocab` (the ids with a count keep a row of their own; one more row is shared by all
    others, whose probability it spreads evenly over them) and for `output_bias`.
    """

    def __init__(self, config, token_counts=None):
        super().__init__()
        self.config = config
        self.notes = {}  # what was saved beside the weights
        if token_counts is None:
            if config.compact_vocab:
                raise UserError("compact_vocab needs token_counts, the count of each id in the training data")
            token_counts = torch.ones(config.vocab_size, dtype=torch.int64)
        self.register_buffer("token_counts", token_counts.to(torch.int64).clone())
        seen = token_counts > 0
        self.n_kept = int(seen.sum()) if config.compact_vocab else config.vocab_size
        self.n_unseen = config.vocab_size - self.n_kept
        n_rows = self.n_kept + (self.n_unseen > 0)
        if self.n_unseen:
            rows = torch.where(seen, seen.cumsum(0) - 1, self.n_kept)
            self.register_buffer("row_of_id", rows, persistent=False)
            self.register_buffer("id_of_row", seen.nonzero()[:, 0], persistent=False)
            self.register_buffer(
                "occurs_once", torch.cat([token_counts[seen] == 1, seen.new_zeros(1)]), False
            )

        self.wte = nn.Embedding(n_rows, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2's: the residual stream is a sum of 2 * n_layer results, so these start smaller
                scale = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.head_bias = nn.Parameter(self._log_frequencies()) if config.output_bias else None

    def _log_frequencies(self):
        """log p of each row by count alone, (rows,): what a model knows before it reads any context."""
        counts = self.token_counts.double()
        if self.n_unseen:  # by Good and Turing, new tokens are as likely as tokens seen once
            counts = torch.cat([counts[self.id_of_row], (counts == 1).sum()[None]])
        return (counts.clamp(min=0.5) / counts.sum()).log().float()

    # --- from ids to probabilities ----------------------------------------------------------------

    def _hidden(self, rows, cache=None, start=0):
        """(B, T) rows of the embedding -> (B, T, C), what the head reads."""
        T = rows.shape[1]
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} tokens are more than block_size, {self.config.block_size}")
        positions = torch.arange(start, start + T, device=rows.device)
        x = self.drop(self.wte(rows) + self.wpe(positions))
        for layer, block in enumerate(self.h):
            x = block(x, None if cache is None else cache[layer], start)
        return self.ln_f(x)

    def _rows(self, ids):
        return self.row_of_id[ids] if self.n_unseen else ids

    def _row_log_probs(self, rows, cache=None, start=0, last_only=False):
        """Log-probabilities of what may follow: rows (B, T) -> (B, T, rows), or (B, rows) after the last."""
        hidden = self._hidden(rows, cache, start)
        hidden = hidden[:, -1] if last_only else hidden
        return F.linear(hidden, self.wte.weight, self.head_bias).log_softmax(-1)

    def forward(self, idx, targets=None):
        """Predict the token after each.

        idx, targets: (B, T) int64 ids, T <= block_size; targets of -1 are ignored.
        Returns (logits, loss). With targets, loss is the mean negative log-likelihood over the full
        vocabulary, in nats a token, and logits is None. Without, logits are (B, T, vocab_size), whose
        log_softmax is the model's distribution, and loss is None.
        """
        if targets is None:
            if self.n_unseen:
                return self.log_probs(idx), None
            return F.linear(self._hidden(idx), self.wte.weight, self.head_bias), None
        rows, target_rows = self._rows(idx), self._rows(targets.clamp(min=0))
        if self.n_unseen and self.training and self.config.unseen_chance:
            # leave-one-out: a token that occurs once would be unseen, were it not in this very window
            drawn = torch.rand(self.n_kept + 1, device=idx.device) < self.config.unseen_chance
            stand_in = torch.arange(self.n_kept + 1, device=idx.device)
            stand_in = stand_in.masked_fill(drawn & self.occurs_once, self.n_kept)
            rows, target_rows = stand_in[rows], stand_in[target_rows]
        loss = F.linear_cross_entropy(
            self._hidden(rows).flatten(0, 1),
            self.wte.weight,
            target_rows.where(targets >= 0, -1).flatten(),
            linear_bias=self.head_bias,
            ignore_index=-1,
            options=LOSS_OPTIONS,
        )
        if self.n_unseen:  # the shared row stands for n_unseen tokens, all as likely
            shared = (target_rows == self.n_kept) & (targets >= 0)
            loss = loss + math.log(self.n_unseen) * shared.sum() / (targets >= 0).sum()
        return None, loss

    @torch.inference_mode()
    def log_probs(self, idx):
        """The log-probability of every id after each token: (B, T) -> (B, T, vocab_size)."""
        by_row = self._row_log_probs(self._rows(idx))
        if not self.n_unseen:
            return by_row
        return (by_row - self._spread())[..., self.row_of_id]

    def _spread(self):
        """What the shared row's log-probability exceeds that of one unseen token by, (rows,)."""
        spread = torch.zeros(self.n_kept + 1, device=self.wte.weight.device)
        spread[self.n_kept] = math.log(self.n_unseen)
        return spread

    @torch.inference_mode()
    def attention_maps(self, idx):
        """How much each token looked at each: (B, T) -> (n_layer, B, n_head, T, T), rows sum to 1."""
        seen = []
        hooks = [
            block.attn.register_forward_pre_hook(lambda attn, args: seen.append(attn.weights(args[0])))
            for block in self.h
        ]
        try:
            self._hidden(self._rows(idx))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(seen)

    # --- from probabilities to text ---------------------------------------------------------------

    def generate(self, idx, max_new_tokens, **how):
        """Continue each row of idx (B, T) by up to max_new_tokens: (B, T + new); `how` as in `stream`."""
        return torch.cat([idx, *(fresh[:, None] for fresh in self.stream(idx, max_new_tokens, **how))], 1)

    @torch.inference_mode()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=1.0, repetition_penalty=1.0,
               stop_token=None, seeds=None):  # fmt: skip
        """Yield the tokens that continue the rows of idx (B, T), step by step: up to max_new_tokens of (B,).

        Each token's log-probability is multiplied by `repetition_penalty` if the row holds it already
        (after Keskar et al. 2019) and divided by `temperature`, where 0 takes the likeliest; then one
        is drawn among the `top_k` likeliest and, of these, the smallest set whose probability reaches
        `top_p` (Holtzman et al. 2020). A row that has produced `stop_token` goes on with it, and the
        stream ends when all rows have. `seeds`, one a row, make a row independent of its batch.

        Keys and values are kept, so each step reads one token. Learned positions end at block_size:
        when the cache is full, the newest half of it is read again, and it goes on.
        """
        B, block_size = idx.shape[0], self.config.block_size
        device, size = idx.device, self.config.n_embd // self.config.n_head
        seeds = torch.randint(2**62, (B,)).tolist() if seeds is None else seeds
        draws = [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        draws = torch.stack(draws).to(device)  # (B, max_new_tokens), all luck there will be

        # Products of fewer than four rows are rounded otherwise than those of more, so that a tweet would
        # depend on how many are written at once: always compute four.
        width = max(B, 4)
        shape = (self.config.n_layer, 2, width, self.config.n_head, block_size, size)
        cache = torch.zeros(shape, device=device, dtype=self.wte.weight.dtype)
        seen = self._rows(idx)  # (B, T), grows
        fresh, start = seen[:, -block_size:], 0  # what is yet to be read, and how much was read before
        if bool((fresh == fresh[:1]).all()):
            fresh = fresh[:1]  # one prompt for all: read it once, and let the cache repeat it
        finished = torch.zeros(B, dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            if start > 0:
                fresh = F.pad(fresh, (0, 0, 0, width - B))
            log_probs = self._row_log_probs(fresh, cache, start, last_only=True)[:B].expand(B, -1)
            start += fresh.shape[1]
            rows = self._choose(
                log_probs, seen, draws[:, step], temperature, top_k, top_p, repetition_penalty
            )
            token = self.id_of_row[rows] if self.n_unseen else rows
            if stop_token is not None:
                token = token.where(~finished, stop_token)
                finished |= token == stop_token
            yield token
            if stop_token is not None and bool(finished.all()):
                return
            fresh = self._rows(token)[:, None]
            seen = torch.cat([seen, fresh], 1)
            if start == block_size:
                fresh, start = seen[:, -(block_size // 2) :], 0

    def _choose(self, log_probs, seen, draws, temperature, top_k, top_p, repetition_penalty):
        """Pick one row of the vocabulary for each of B rows: log_probs (B, rows), seen (B, T), draws (B,)."""
        if repetition_penalty != 1.0:
            log_probs = log_probs.scatter(1, seen, repetition_penalty * log_probs.gather(1, seen))
        log_probs = log_probs[:, : self.n_kept]  # never the shared row: it is no token
        if temperature == 0:
            return log_probs.argmax(-1)
        log_probs, rows = log_probs.topk(min(top_k or self.n_kept, self.n_kept))  # the likeliest first
        probs = (log_probs.double() / temperature).softmax(-1)
        cumulative = probs.cumsum(-1)
        n_allowed = (cumulative - probs < top_p).sum(-1, keepdim=True)
        reached = cumulative.gather(1, n_allowed - 1)
        place = torch.searchsorted(cumulative, draws[:, None] * reached, right=True)
        return rows.gather(1, place.minimum(n_allowed - 1))[:, 0]

    # --- from and to files ------------------------------------------------------------------------

    def save(self, path, **notes):
        """Write weights and config to `path`, whole or not at all; `notes` (plain values) go beside them."""
        with written_whole(path, "wb") as file:
            torch.save(self.checkpoint(**notes), file)

    def checkpoint(self, **notes):
        """What `save` writes: a dictionary of plain values and tensors."""
        config = dataclasses.asdict(self.config)
        return {"format": CHECKPOINT_FORMAT, "config": config, "model": self.state_dict(), "notes": notes}

    @classmethod
    def load(cls, path, device="cpu"):
        """Read what `save` wrote; `model.notes` holds the notes. No code from the file is run.

        Raises UserError when the file is missing, damaged, or not such a checkpoint.
        """
        return cls.from_checkpoint(read_checkpoint(path), path, device)

    @classmethod
    def from_checkpoint(cls, checkpoint, path, device="cpu"):
        try:
            config, state = GPTConfig(**checkpoint["config"]), checkpoint["model"]
            model = cls(config, state.get("token_counts"))
            model.load_state_dict(state)
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UserError(f"{path} does not hold a model that fits its config: {error}") from None
        model.notes = checkpoint.get("notes", {})
        return model.to(device).eval()

    @classmethod
    def from_pretrained(cls, path):
        """A GPT with the weights of a GPT-2 in the Hugging Face folder `path`."""
        folder = pathlib.Path(path)
        try:
            theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a Hugging Face folder with a config.json: {error}") from None
        config = GPTConfig(
            block_size=theirs["n_positions"],
            vocab_size=theirs["vocab_size"],
            n_layer=theirs["n_layer"],
            n_head=theirs["n_head"],
            n_embd=theirs["n_embd"],
            dropout=float(theirs.get("resid_pdrop", 0.1)),
            gelu="exact" if theirs.get("activation_function") == "gelu" else "tanh",
        )
        weights = read_pretrained_weights(folder)
        model = cls(config)
        state = model.state_dict()
        for name in state.keys() - {"token_counts"}:
            tensor = weights.get(name, weights.get(f"transformer.{name}"))
            if tensor is None:
                raise UserError(f"{path} lacks the weights {name}; is it a GPT-2?")
            # OpenAI's code stored the matrices of attention and MLP as (in, out); Linear wants (out, in)
            transposed = name.startswith("h.") and tensor.dim() == 2
            state[name] = tensor.t() if transposed else tensor
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path} holds weights that its config.json does not describe: {error}") from None
        return model.eval()


def read_checkpoint(path):
    """The dictionary in a checkpoint file, on the CPU; raises UserError when it cannot be trusted or read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; run train.py first") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        why = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is damaged or no checkpoint of this program: {why}") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path} is no checkpoint of this program (format {CHECKPOINT_FORMAT})")
    return checkpoint


def read_pretrained_weights(folder):
    """The tensors by name in a Hugging Face folder, from model.safetensors or pytorch_model.bin."""
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.exists():
        try:
            from safetensors.torch import load_file
        except ImportError:
            if not pickled.exists():
                raise UserError(f"to read {safe}, `pip install safetensors`") from None
        else:
            return load_file(safe)
    if not pickled.exists():
        raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
    return torch.load(pickled, map_location="cpu", weights_only=True)


def choose_device(name):
    """The torch.device called `name`, or for "auto" the fastest that is here; UserError if it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device
