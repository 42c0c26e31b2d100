"""A compact GPT-2: the model that train.py trains and sample.py writes with.

    from model import GPT, GPTConfig

    model = GPT(GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128))
    logits, _ = model(idx)                             # (B, T) int64 GPT-2 token ids -> (B, T, V)
    _, loss = model(idx, targets)                      # nats per token
    tokens = model.generate(idx, max_new_tokens=40)    # (B, T + 40), or fewer if all texts end before
    model = GPT.load("out/best.pt")

In the shapes below B is the batch, T the time (tokens), C the channels (n_embd), V the vocabulary.

Names are GPT-2's: wte and wpe embed tokens and positions, h are the blocks, ln is a LayerNorm, c_attn makes
queries, keys and values, c_fc widens, c_proj maps back to C channels. What a small corpus needs comes last:
Noise, and SmallVocabulary, in which rare tokens share what they learn. A plain GPT uses neither.
"""

import dataclasses
import math
import pathlib
import zlib
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from config import UserError, written_whole

END_OF_TEXT = 50256  # GPT-2's <|endoftext|>, which also marks where the next tweet begins


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; Settings in train.py says what each entry does. UserError if two do not fit."""

    block_size: int = 64
    vocab_size: int = 50257
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    separate_tweets: bool = False
    cut: float = 0.0
    noise: float = 0.0
    compact_vocab: bool = False
    spelling: int = 0

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.spelling and not self.compact_vocab:
            raise UserError("spelling needs compact_vocab; add --spelling=0")
        if self.cut and not self.separate_tweets:
            raise UserError("cut needs separate_tweets; add --cut=0")


# --- the network ----------------------------------------------------------------------------------


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and the tokens before it, in n_head different ways at once.

    A token's query q says what it looks for, its key k what it offers, its value v what it passes on.
    A head computes softmax(q @ k.T / sqrt(C / n_head)) @ v, with the softmax over only the tokens that
    each may look at (Vaswani et al. 2017, "Attention Is All You Need").
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def queries_keys_values(self, x):
        """(B, T, C) -> three of (B, n_head, T, C / n_head)."""
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        return [part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=-1)]

    def attention(self, q, k, mask):
        """How much each of the T tokens of q looks at each of the S of k, where mask (B, 1, T, S) allows it:
        (B, n_head, T, S); rows sum to 1."""
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, -math.inf).softmax(-1)

    def forward(self, x, mask, cache=None, n_cached=0):
        """(B, T, C) -> (B, T, C), for T tokens after n_cached others.

        mask: what each token may look at, boolean, (B, 1, T, n_cached + T).
        cache: (2, B, n_head, block_size, C / n_head), the keys and values of the n_cached tokens; those of x
        are written into it.
        """
        B, T, C = x.shape
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            cache[0, :, :, n_cached : n_cached + T] = k
            cache[1, :, :, n_cached : n_cached + T] = v
            k, v = cache[:, :, :, : n_cached + T]
        if x.is_cuda or T > 256:
            y = F.scaled_dot_product_attention(q, k, v, mask)  # (B, n_head, T, C / n_head)
        else:  # the same, for short windows faster on a CPU
            y = self.attention(q, k, mask) @ v
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads' results side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each token on its own: widen four times, GELU (in GPT-2's approximation by tanh), narrow."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """Attention, then MLP. Each reads a normalised copy of x, the residual stream, and adds its result."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, mask, cache=None, n_cached=0):
        """(B, T, C) -> (B, T, C); the rest as in CausalSelfAttention.forward."""
        x = x + self.attn(self.ln_1(x), mask, cache, n_cached)
        return x + self.mlp(self.ln_2(x))


# --- the vocabulary -------------------------------------------------------------------------------


class Vocabulary(nn.Module):
    """GPT-2's: a vector for each id, by which it is read and, as the next token, scored ("tied")."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)

    def embed(self, idx):
        """(B, T) -> (B, T, C)."""
        return self.wte(idx)

    def scorers(self):
        """What `logits` scores ids with: a weight (V, C) and a bias, here none. SmallVocabulary must compute
        them, so `generate` does it once for all its steps."""
        return self.wte.weight, None

    def logits(self, hidden, scorers):
        """Scores of all ids, whose softmax is the distribution of the next: (…, C) -> (…, V)."""
        return F.linear(hidden, *scorers)

    def loss(self, hidden, targets):
        """-ln p of each target, 0 where it is -1: (N, C) and (N,) -> (N,), in nats."""
        return token_losses(hidden, self.scorers(), targets)


def token_losses(hidden, scorers, targets):
    """-ln p of each target, 0 where it is -1: hidden (N, C), targets (N,) -> (N,)."""
    # logits of so few positions at a time that they fit a CPU's cache, which is twice as fast, or of as many
    # as keep a GPU busy
    chunk = 2048 if hidden.is_cuda else 128
    losses = []
    for x, y in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        losses.append(F.cross_entropy(F.linear(x, *scorers), y, ignore_index=-1, reduction="none"))
    return torch.cat(losses)


# --- the model ------------------------------------------------------------------------------------


class GPT(nn.Module):
    """GPT-2: a vocabulary, positions, a stack of blocks, and a final LayerNorm.

    Like any module it begins in training mode; what load() and from_pretrained() return is in eval mode.
    """

    def __init__(self, config, tokens=None, tables=None):
        """tokens: (N,) int64, those to be trained on, which `noise` and `compact_vocab` learn from; tables:
        what token_tables() makes, for `compact_vocab`. Raises ValueError if what they need is not given."""
        super().__init__()
        if config.noise and tokens is None:
            raise ValueError("noise needs tokens")
        if config.compact_vocab and (tokens is None or tables is None):
            raise ValueError("compact_vocab needs tokens and tables")
        self.config = config
        if config.compact_vocab:
            self.vocabulary = SmallVocabulary(config, tokens, tables)
        else:
            self.vocabulary = Vocabulary(config)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.EmbeddingBag):
                # as in GPT-2: 2 * n_layer results are summed in the residual stream, so each starts smaller
                scale = math.sqrt(2 * config.n_layer) if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=0.02 / scale)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        # what a small corpus needs; load() makes it anew of the tokens and tables, which save() keeps
        self.noise = Noise(config, tokens) if config.noise else nn.Identity()
        self.tokens = torch.zeros(0, dtype=torch.int64) if tokens is None else tokens
        self.tables = tables
        self.notes = {}

    def forward(self, idx, targets=None):
        """Predict, at each position, the next token.

        idx, targets: (B, T) int64 GPT-2 ids, T <= block_size; targets of -1 are ignored. Returns (logits,
        None) without targets: (B, T, vocab_size), whose log_softmax is the model's distribution. With them,
        (None, loss): the mean negative log-likelihood over the full vocabulary, in nats per token.
        """
        hidden = self.hidden_states(idx)  # (B, T, C)
        if targets is None:
            return self.vocabulary.logits(hidden, self.vocabulary.scorers()), None
        losses = self.vocabulary.loss(hidden.flatten(0, 1), targets.flatten())
        return None, losses.sum() / (targets >= 0).sum()

    def hidden_states(self, idx, cache=None, n_cached=0):
        """The last block's output, normalised, for all tokens but the first n_cached, whose keys and values
        `cache` holds: (B, T) -> (B, T - n_cached, C)."""
        start = self.tweet_starts(idx)
        x, mask = self.embed(idx, start, n_cached), self.mask(start, n_cached)
        for layer, block in enumerate(self.h):
            x = block(x, mask, None if cache is None else cache[layer], n_cached)
        return self.ln_f(x)

    def tweet_starts(self, idx):
        """Where the tweet of each token starts: (B, T) -> (B, T). Without separate_tweets the window is one
        text, which starts at 0."""
        if not self.config.separate_tweets:
            return torch.zeros_like(idx)
        is_first = idx == END_OF_TEXT
        if self.training and self.config.cut:
            is_first |= torch.rand(idx.shape, device=idx.device) < self.config.cut
        position = torch.arange(idx.shape[1], device=idx.device)
        return position.where(is_first, 0).cummax(1).values  # . a b . c -> 0 0 0 3 3

    def embed(self, idx, start, n_cached=0):
        """What the blocks get for all tokens but the first n_cached: the vector of each plus that of its
        place in its tweet, which starts at `start` (B, T): (B, T) -> (B, T - n_cached, C)."""
        T = idx.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than block_size, {self.config.block_size}")
        places = (torch.arange(T, device=idx.device) - start)[:, n_cached:]
        return self.drop(self.vocabulary.embed(self.noise(idx[:, n_cached:])) + self.wpe(places))

    def mask(self, start, n_cached=0):
        """What each of these tokens may look at: itself and those before it, back to where its tweet starts:
        (B, T) -> boolean (B, 1, T - n_cached, T), the same for all heads."""
        position = torch.arange(start.shape[1], device=start.device)
        in_same_tweet = position >= start[:, :, None]  # (B, T, T)
        is_past = position <= position[:, None]  # (T, T)
        return (in_same_tweet & is_past)[:, None, n_cached:]

    @torch.no_grad()
    def log_probs(self, idx):
        """The log-probability of every id after each token: (B, T) -> (B, T, vocab_size)."""
        logits = self(idx)[0]
        # not log_softmax, which on a CPU with AVX2 loses 1e-4 where many logits are small and equal
        return logits - logits.logsumexp(-1, keepdim=True)

    @torch.no_grad()
    def attention_maps(self, idx):
        """How much each token looked at each: (B, T) -> (n_layer, B, n_head, T, T); rows sum to 1."""
        start = self.tweet_starts(idx)
        x, mask, maps = self.embed(idx, start), self.mask(start), []
        for block in self.h:
            q, k, _ = block.attn.queries_keys_values(block.ln_1(x))
            maps.append(block.attn.attention(q, k, mask))
            x = block(x, mask)
        return torch.stack(maps)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, banned=(),
                 min_new_tokens=0, generator=None):  # fmt: skip
        """Continue each row of idx (B, T) by up to max_new_tokens: (B, T + new).

        Each token is drawn as `choose` says, never one of `banned`. A row ends with <|endoftext|>, but not
        before min_new_tokens, and is filled up with it. Keys and values are kept in a cache, so each step
        computes one token of each row. When block_size tokens are in it, the older half is forgotten.
        """
        (B, T), config, scorers = idx.shape, self.config, self.vocabulary.scorers()
        shape = (config.n_layer, 2, B, config.n_head, config.block_size, config.n_embd // config.n_head)
        cache = torch.zeros(shape, device=idx.device, dtype=self.wpe.weight.dtype)
        text = F.pad(idx, (0, max_new_tokens), value=END_OF_TEXT)
        # the rows of text that are still computed; when more than half of them have ended, these are dropped
        rows = torch.arange(B, device=idx.device)
        ended = torch.zeros(B, dtype=torch.bool, device=idx.device)
        window = max(T - config.block_size, 0)  # where the text that is read begins
        n_cached = 0  # how many of the tokens in text[:, window:end] are in the cache
        for end in range(T, T + max_new_tokens):
            hidden = self.hidden_states(text[rows, window:end], cache, n_cached)[:, -1]  # (rows, C)
            logits = self.vocabulary.logits(hidden, scorers)  # (rows, V)
            logits[:, list(banned)] = -math.inf
            if end < T + min_new_tokens:
                logits[:, END_OF_TEXT] = -math.inf
            token = choose(logits, temperature, top_k, top_p, min_p, generator)[:, 0]  # (rows,)
            text[rows, end] = token.where(~ended, END_OF_TEXT)
            ended |= token == END_OF_TEXT
            n_ended = int(ended.sum())
            if n_ended == len(rows):
                return text[:, : end + 1]
            if 2 * n_ended > len(rows):
                rows, cache, ended = rows[~ended], cache[:, :, ~ended], ended[~ended]
            # for the next step
            if end - window < config.block_size:
                n_cached = end - window
            else:  # the cache is full: read the newest half again
                window, n_cached = end + 1 - config.block_size // 2, 0
        return text

    def save(self, path, **notes):
        """Write all that load() needs to `path`, whole or not at all; beside it notes: plain values, tensors,
        and lists and dictionaries of these."""
        saved = {
            "config": dataclasses.asdict(self.config),
            "model": self.state_dict(),
            "tokens": self.tokens.to(torch.uint16),
            "tables": self.tables,
            "notes": notes,
        }
        with written_whole(path, "wb") as file:
            torch.save(saved, file)

    @classmethod
    def load(cls, path, device="cpu"):
        """Read what save() wrote, running no code from it; `model.notes` holds the notes. Raises UserError if
        there is no such file, or if it is damaged or something else, and OSError if it cannot be opened."""
        path = pathlib.Path(path)
        if not path.exists():
            fix, earlier = "run train.py first", path.parent / "previous"
            if (earlier / path.name).exists():
                fix += f", or take the run before: --out_dir={earlier}"
            raise UserError(f"there is no checkpoint {path}; {fix}")
        with open(path, "rb") as file:
            try:
                saved = dict(torch.load(file, map_location="cpu", weights_only=True))
                model = cls(GPTConfig(**saved["config"]), saved["tokens"].long(), saved["tables"])
                model.load_state_dict(saved["model"])
                model.notes = dict(saved["notes"])
            except Exception as error:  # torch fails in many ways on damaged files
                why = str(error).split("\n")[0]
                raise UserError(f"{path} is cut off or no checkpoint of this version: {why}") from None
        return model.to(device).eval()

    @classmethod
    @torch.no_grad()
    def from_pretrained(cls, name_or_path, tokens=None, **changes):
        """A model with GPT-2's weights, in evaluation mode.

        name_or_path: what transformers takes: gpt2, gpt2-medium, gpt2-large, gpt2-xl, which are downloaded
        once, or a folder. tokens: as for GPT(). changes: of entries of the config, such as a smaller
        block_size, dropout, separate_tweets. Raises UserError if there are no such weights, or not that many
        positions, and for a relative of GPT-2, which computes something else.
        """
        try:
            from transformers import GPT2Config, GPT2LMHeadModel

            theirs = GPT2LMHeadModel.from_pretrained(name_or_path)
        except ImportError:
            raise UserError("GPT-2's weights need transformers: `pip install transformers`") from None
        except Exception as error:  # transformers fails in many ways on damaged files
            why = str(error).split("\n")[0]
            raise UserError(f"{name_or_path} is not at hand or no GPT-2: {why}") from None
        config, usual = theirs.config, GPT2Config()
        fixed = (  # what makes a GPT-2 compute what this one does
            "model_type", "vocab_size", "layer_norm_epsilon", "activation_function", "n_inner",
            "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
        )  # fmt: skip
        if differs := [name for name in fixed if getattr(config, name) != getattr(usual, name)]:
            raise UserError(f"{name_or_path} is a relative of GPT-2: its {', '.join(differs)} differs")
        ours = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")}
        ours |= {"block_size": config.n_positions, "dropout": config.resid_pdrop}
        model = cls(GPTConfig(**ours | changes), tokens)
        if model.config.block_size > config.n_positions:
            raise UserError(f"block_size: {name_or_path} has no more than {config.n_positions} positions")
        weights = theirs.transformer.state_dict()
        for name, parameter in model.gpt2_parameters():
            parameter.copy_(weights[name][: len(parameter)])  # of wpe the first block_size
        return model.eval()

    def gpt2_parameters(self):
        """(GPT-2's name, the parameter in GPT-2's layout) for each: OpenAI's code stored the matrices of
        attention and MLP as (in, out); Linear wants (out, in)."""
        for name, parameter in self.named_parameters():
            is_transposed = name.startswith("h.") and parameter.dim() == 2
            yield name.removeprefix("vocabulary."), parameter.t() if is_transposed else parameter


def choose(logits, temperature, top_k, top_p, min_p, generator):
    """Draw a token for each row: logits (B, V) -> (B, 1). Raises UserError if they are not finite.

    Logits are divided by `temperature` (0 takes the likeliest); then one is drawn among those that are in
    the `top_k` likeliest (None or 0 for all), in the smallest set of these whose probability reaches `top_p`
    (Holtzman et al. 2020), and at least `min_p` times as likely as the likeliest (Nguyen et al. 2024).
    """
    best = logits.amax(-1, keepdim=True)
    if not bool(best.isfinite().all()):
        raise UserError("the model's scores are not finite numbers; its weights are probably damaged")
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    least = torch.full_like(best, -math.inf)  # (B, 1): tokens from this logit on may be drawn
    if top_k or top_p < 1:
        ranked = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1])).values
        probs = ((ranked - best) / temperature).exp()
        before = (probs.cumsum(-1) - probs) / probs.sum(-1, keepdim=True)  # what the likelier ones have
        n_kept = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
        least = ranked.gather(-1, n_kept - 1)
    if min_p:
        least = least.maximum(best + temperature * math.log(min_p))
    # only for speed: go on without the ids that are below it in every row
    ids = (logits.amax(0) >= least.min()).nonzero()[:, 0]
    logits = logits.index_select(1, ids)
    probs = ((logits - best) / temperature).exp() * (logits >= least)
    cumulative = probs.cumsum(-1)
    # the first token whose cumulative probability exceeds a uniform draw; faster than torch.multinomial
    draw = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    return ids[torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)]


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


# --- for a small corpus: noise ---------------------------------------------------------------------


class Noise(nn.Module):
    """In training, tokens that are read are replaced at random, so that texts are harder to learn by heart.

    After Xie et al. 2017, "Data Noising as Smoothing in Neural Network Language Models": the chance grows
    with the share of distinct tokens among those that follow an id in the training tokens, so it is largest
    for rare ones; what takes its place is drawn so as to favour what follows many others.
    """

    def __init__(self, config, tokens):
        """tokens: (N,) int64, those to be trained on."""
        super().__init__()
        V = config.vocab_size
        pairs = torch.unique(tokens[:-1] * V + tokens[1:])
        followers = torch.bincount(pairs // V, minlength=V)
        chance = config.noise * followers / torch.bincount(tokens, minlength=V).clamp(min=1)
        self.register_buffer("chance", chance, persistent=False)  # (V,)
        self.register_buffer("pool", pairs % V, persistent=False)  # (number of distinct pairs,)
        self.register_buffer("strength", torch.ones(()), persistent=False)  # train.py lets it fall to 0

    def forward(self, idx):
        """(B, T) -> (B, T)."""
        if not self.training:
            return idx
        drawn = self.pool[torch.randint(len(self.pool), idx.shape, device=idx.device)]
        is_replaced = torch.rand(idx.shape, device=idx.device) < self.strength * self.chance[idx]
        return drawn.where(is_replaced, idx)


# --- for a small corpus: its vocabulary -----------------------------------------------------------

MAX_PIECES = 24  # of a token's spelling


def token_tables(texts, spelling):
    """What SmallVocabulary needs to know of the ids' texts: their looks, words and spelling.

    texts: the text of each id; spelling: the size of the hash table of spelling vectors, or 0 for none.
    Returns integers, {"look": (V,), "word": (V,), "pieces": (V, MAX_PIECES)}; a piece is the place of
    its vector in the table, and 0 fills up.
    """
    looks, words = {}, {}  # the number of each
    look, word, pieces = [], [], []
    for token, text in enumerate(texts):
        rank = int(math.log2(token / 300 + 1))  # by frequency: 0 for the first 300 ids, …, 7 for the last
        look.append(looks.setdefault((letter_kind(text), rank), len(looks)))
        word.append(words.setdefault(text.strip().casefold(), len(words)))
        if spelling:
            found = [1 + zlib.crc32(piece.encode()) % spelling for piece in pieces_of(text)[:MAX_PIECES]]
            pieces.append(found + [0] * (MAX_PIECES - len(found)))
    return {
        "look": torch.tensor(look, dtype=torch.int32),
        "word": torch.tensor(word, dtype=torch.int32),
        "pieces": torch.tensor(pieces, dtype=torch.int16),
    }


def letter_kind(text):
    """The kind of a token's letters, with a mark for a leading space: "Capital ", "digits", …"""
    bare = text.strip()
    if not bare:
        kind = "space"
    elif "\ufffd" in bare:
        kind = "bytes"
    elif bare.islower():
        kind = "lower"
    elif bare.isupper() and len(bare) > 1:
        kind = "UPPER"
    elif bare[0].isupper():
        kind = "Capital"
    elif bare.isdigit():
        kind = "digits"
    else:
        kind = "other"
    return kind + " " if text.startswith(" ") else kind


def pieces_of(text):
    """The pieces that a token's vector is made of: its letters' kind, the word, and 3 to 5 letters in a row.

    The idea is fastText's (Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information").
    """
    framed = f"<{text.strip().casefold()}>"
    grams = [framed[at : at + size] for size in (3, 4, 5) for at in range(len(framed) - size + 1)]
    return [f"letters {letter_kind(text)}", f"word {framed}", *grams]


def rows_of_ids(counts, tables):
    """The row of each id in `wte`, (V,), and how many rows are shared; these come first.

    An id seen twice or more has a row of its own. Others share one if they are alike in look (their letters,
    and their rank in GPT-2's vocabulary) and their words occur about as often in other forms.
    counts: (V,) how often each id occurs in the training tokens.
    """
    word = tables["word"].long()
    in_other_forms = torch.bincount(word, counts)[word] - counts
    forms = (in_other_forms + 1).log2().long().clamp(max=3)  # 0; 1 or 2; 3 to 6; more
    is_rare = counts < 2
    kinds = torch.stack([tables["look"].long(), forms], dim=1)[is_rare]
    shared_rows, row_of_rare = torch.unique(kinds, dim=0, return_inverse=True)
    row_of = torch.empty_like(counts)
    row_of[is_rare] = row_of_rare
    row_of[~is_rare] = len(shared_rows) + torch.arange(len(counts) - len(row_of_rare))
    return row_of, len(shared_rows)


def log_shares(row_of, counts, share_of_once):
    """The log of each id's share of its row, (V,).

    Of a shared row, the ids that were seen once have share_of_once together, those never seen the rest, or
    either all where there are no others. Let " rocket" occur nine times, " Rockets" once, " Jets" never, the
    last two look alike, and share_of_once be 0.6. Their shares are 1, 0.6 and 0.4.
    """
    once, never = counts == 1, counts == 0
    n_once, n_never = torch.bincount(row_of, once.float()), torch.bincount(row_of, never.float())  # (rows,)
    # what a row's ids seen once have together: all, if it has no others; nothing, if there are none
    of_once = torch.where(n_never == 0, 1.0, share_of_once).where(n_once > 0, 0.0)
    share = torch.ones(len(counts))
    # where a row has no such ids, these divide by 0, but then no id reads the result
    share[once] = (of_once / n_once)[row_of[once]]
    share[never] = ((1 - of_once) / n_never)[row_of[never]]
    return share.log()


class SmallVocabulary(nn.Module):
    """For a small corpus, in which most ids never occur: a row of `wte` for each id seen twice or more, and
    shared rows for the rest. It has Vocabulary's methods.

    Ids seen once share a row with those never seen that are alike, and so teach where new tokens are likely,
    and of which kind. But training makes these rows too unlikely: together as likely as the ids seen once,
    which occurred N1 times. In as much new text the ids seen once will occur 2 * N2 times, where N2 is the
    number of those seen twice, and the ids never seen N1 times (Good 1953, "The Population Frequencies of
    Species"; Turing's idea). So outside of training the scores of shared rows are raised by the log of
    (N1 + 2 * N2) / N1.
    """

    def __init__(self, config, tokens, tables):
        """tokens: (N,) int64, those to be trained on; tables: what token_tables() makes."""
        super().__init__()
        counts = torch.bincount(tokens, minlength=config.vocab_size)  # (V,)
        row_of, self.n_shared = rows_of_ids(counts, tables)
        row_counts = torch.bincount(row_of, counts.float())  # (rows,)
        self.wte = nn.Embedding(len(row_counts), config.n_embd)
        # where the scores start: the log of how frequent each row is, where 0 counts as a half
        self.bias = nn.Parameter((row_counts.clamp(min=0.5) / row_counts.sum()).log())
        n1, n2 = (max(1, int((counts == n).sum())) for n in (1, 2))
        is_shared = torch.arange(len(row_counts)) < self.n_shared
        derived = {
            "own": (counts >= 2).nonzero()[:, 0],  # the ids with rows of their own
            "row_of": row_of,  # (V,)
            "log_share": log_shares(row_of, counts, 2 * n2 / (n1 + 2 * n2)),  # (V,)
            "raised": is_shared * math.log((n1 + 2 * n2) / n1),  # (rows,)
        }
        self.spell = None
        if config.spelling:
            self.spell = nn.EmbeddingBag(config.spelling + 1, config.n_embd, mode="sum", padding_idx=0)
            derived["pieces"] = tables["pieces"].int()  # (V, MAX_PIECES)
            derived["scale"] = (derived["pieces"] > 0).sum(1, keepdim=True).rsqrt()  # (V, 1)
        for name, table in derived.items():
            self.register_buffer(name, table, persistent=False)  # made anew when a checkpoint is loaded

    def spelling_vectors(self, ids):
        """The sum of the vectors of each id's n pieces, over sqrt(n): (n,) -> (n, C)."""
        return self.spell(self.pieces[ids]) * self.scale[ids]

    def embed(self, idx):
        """(B, T) -> (B, T, C)."""
        x = self.wte(self.row_of[idx])
        return x if self.spell is None else x + self.spelling_vectors(idx.flatten()).view_as(x)

    def scorers(self):
        """(weight, bias) of the scores of all rows: (rows, C) and (rows,)."""
        weight, bias = self.wte.weight, self.bias
        if self.spell is not None:
            # a shared row stands for many ids, so no spelling is its own
            own = weight[self.n_shared :] + self.spelling_vectors(self.own)
            weight = torch.cat([weight[: self.n_shared], own])
        if not self.training:
            bias = bias + self.raised
        return weight, bias

    def logits(self, hidden, scorers):
        """Scores whose softmax is the distribution of the next id: (…, C) -> (…, V)."""
        return F.linear(hidden, *scorers).index_select(-1, self.row_of) + self.log_share

    def loss(self, hidden, targets):
        """-ln p of each target, 0 where it is -1: (N, C) and (N,) -> (N,), in nats."""
        is_scored, ids = targets >= 0, targets.clamp(min=0)
        of_rows = token_losses(hidden, self.scorers(), self.row_of[ids].where(is_scored, -1))
        return of_rows - self.log_share[ids] * is_scored
