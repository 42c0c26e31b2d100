"""Write new tweets with the model that train.py trained. They are a model's parody, nobody's words.

    python sample.py --start "Tesla"                     # ten tweets that begin with Tesla
    python sample.py --num_samples=20 --min_novelty=0.5  # twenty, none of them copied
    python sample.py --start=FILE:prompt.txt --seed=7    # the prompt from a file
    python sample.py --start "Tesla is" --attention      # and how the model looks at it
    python sample.py --interactive                       # a prompt a line, until end of file
    python sample.py --export=my-gpt                     # a folder for Hugging Face's transformers

Prints the tweets, on a terminal each with its novelty, and adds them to out/samples.txt.
"""

import math
import os
import pathlib
import re
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise

from config import UserError, errors_in_one_line, load_settings, printable, setting, written_whole


@dataclass(frozen=True)
class Settings:
    start: str = setting("", "how the tweets begin; FILE:path reads it from a file", group="what to write")
    num_samples: int = setting(10, "how many tweets to write", low=1)
    candidates: int = setting(4, "of so many drawn for each tweet, keep the most coherent", low=1)
    max_new_tokens: int = setting(100, "the longest continuation, in tokens", low=1)
    interactive: bool = setting(False, "read prompts from standard input, one per line")
    min_novelty: float = setting(0.0, "redraw tweets of which less than this is new", low=0, high=1)

    temperature: float = setting(0.8, "below 1 safer, above 1 wilder; 0: the likeliest", low=0, group="how")
    min_p: float = setting(0.1, "drop tokens less likely than this times the likeliest", low=0, high=1)
    top_k: int = setting(0, "draw among the k likeliest tokens; 0 for all", low=0)
    top_p: float = setting(1.0, "of these, the fewest whose probabilities add up to this", low=0, high=1)
    seed: int = setting(1337, "the same seed gives the same tweets", low=0, high=10**18)

    attention: bool = setting(False, "draw how the model looks at the text: attention.png", group="files")
    out_dir: str = setting("out", "the folder with best.pt; samples.txt is kept there")
    init_from: str = setting("", "write with this GPT-2 (a name or path) instead of best.pt")
    export: str = setting("", "write the model to this new folder, for transformers, and exit")
    device: str = setting("auto", "auto, cpu, cuda, …")


if __name__ == "__main__":  # here, so that mistakes are told before the slow import of torch
    settings = load_settings(Settings, sys.argv[1:])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py

import torch

from model import GPT, choose_device
from prepare import END_OF_TEXT, MAX_CHARS, encode, load_tokenizer, vocabulary_files

BATCH = 25  # tweets at a time, so that memory does not grow with their number
MAX_ROUNDS = 20  # of drawing anew what was rejected
GRAM = 4  # words
CUT_OFF = 3926  # " …", which prepare.py leaves where the source cut a tweet off: no way to end one


def main(settings):
    out_dir = pathlib.Path(settings.out_dir)
    device = choose_device(settings.device)
    if settings.init_from:
        model = GPT.from_pretrained(settings.init_from).to(device)
    else:
        model = GPT.load(out_dir / "best.pt", device)
    if settings.export:
        export(model, pathlib.Path(settings.export))
        return
    tokenizer, generator = load_tokenizer(), torch.Generator(device).manual_seed(settings.seed)
    known = TrainingTweets(tokenizer.decode(model.tokens.tolist()))
    if settings.interactive and sys.stdin.isatty():
        print("type how the tweets begin and press Enter; Ctrl-D ends", file=sys.stderr)
    for start in sys.stdin if settings.interactive else [settings.start]:
        prompt, lines = read_prompt(start), []
        for tweet, novelty, source in write(model, tokenizer, known, prompt, settings, generator):
            measured = f"{novelty:4.0%} new  " if len(model.tokens) else ""  # GPT-2 itself has read no tweets
            lines.append(measured + printable(tweet))
            print(lines[-1] if sys.stdout.isatty() else printable(tweet), flush=True)
            if source and sys.stdout.isatty():
                print(f"          word for word in: {printable(source)}")
        keep(lines, start.strip(), settings, out_dir / "samples.txt")
        if settings.attention:
            ids = [END_OF_TEXT, *encode(tokenizer, prompt or tweet)]
            plot_attention(model, tokenizer, ids, out_dir / "attention.png")
            print(f"wrote {out_dir}/attention.png", file=sys.stderr)


def read_prompt(start):
    """The text that the tweets begin with: `start` itself, or for FILE:path what that file holds."""
    if start.startswith("FILE:"):
        path = pathlib.Path(start.removeprefix("FILE:").strip())
        start = path.read_text(encoding="utf-8-sig", errors="replace")
    if len(start) > MAX_CHARS:
        raise UserError(f"start: {len(start):,} characters are more than a post may have, {MAX_CHARS:,}")
    return " ".join(start.split())


# --- writing --------------------------------------------------------------------------------------


def write(model, tokenizer, known, prompt, settings, generator):
    """Yield num_samples of (tweet, novelty, the training tweet that holds all of it or None).

    Each is the most coherent of `candidates`. Out of question are those that add nothing to the prompt, that
    were written already, that are less new than asked for, that hold half a character, or a token twice in a
    row as no training tweet does: trained with noise, the model takes its own last token for noise at times,
    and says it again.
    """
    idx = torch.tensor([[END_OF_TEXT, *encode(tokenizer, prompt)]], device=generator.device)
    n_prompt, block_size = idx.shape[1] - 1, model.config.block_size
    if n_prompt > block_size:
        told = f"the prompt has {n_prompt} tokens; the model reads only the last {block_size} (block_size)"
        print(told, file=sys.stderr)
    written, missing = {prompt}, settings.num_samples
    for _ in range(MAX_ROUNDS * math.ceil(settings.num_samples / BATCH)):
        n = min(missing, BATCH)
        rows = model.generate(
            idx.expand(n * settings.candidates, -1), settings.max_new_tokens, settings.temperature,
            settings.top_k, settings.top_p, settings.min_p, [CUT_OFF], generator,
        )  # fmt: skip
        best_first = coherence(model, rows).view(n, -1).argsort(descending=True)  # (n, candidates)
        for candidates, order in zip(rows[:, 1:].view(n, settings.candidates, -1), best_first, strict=True):
            for row in candidates[order].tolist():
                row = row[: row.index(END_OF_TEXT)] if END_OF_TEXT in row else row
                tweet = tokenizer.decode(row).strip()
                doubled = [tokenizer.decode(pair) for pair in pairwise(row[n_prompt:]) if pair[0] == pair[1]]
                if tweet in written or "\ufffd" in tweet or not all(text in known.text for text in doubled):
                    continue
                novelty, source = known.compare(tweet)
                if novelty >= settings.min_novelty:
                    written.add(tweet)
                    missing -= 1
                    yield tweet, novelty, source
                    break
        if not missing:
            return
    print(f"gave up on {missing} tweets; lower min_novelty or raise temperature", file=sys.stderr)


@torch.inference_mode()
def coherence(model, rows):
    """How well each row's tokens fit what precedes them: (B, T) -> (B,), in nats per token.

    That is the mean of ln p(token | those before it) - ln p(token), where p(token) is how frequent it is in
    the training tweets, so that what merely is frequent gains nothing. After Li et al. 2016, "A
    Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    seen = rows[:, : model.config.block_size + 1]
    idx, targets = seen[:, :-1], seen[:, 1:]
    is_text = (idx != END_OF_TEXT) | (torch.arange(idx.shape[1], device=idx.device) == 0)
    losses = model.vocabulary.loss(model.read(idx).flatten(0, 1), targets.flatten()).view_as(targets)
    counts = torch.bincount(model.tokens.long(), minlength=model.config.vocab_size) + 0.5
    gain = -losses - (counts / counts.sum()).log()[targets]
    return (gain * is_text).sum(1) / is_text.sum(1)


class TrainingTweets:
    """The tweets that a model was trained on, to tell what it copies."""

    def __init__(self, text):
        """text: all of them, each after an <|endoftext|>."""
        self.text, self.tweets = text, text.split("<|endoftext|>")
        self.words = "\n".join(f" {' '.join(words(tweet))} " for tweet in self.tweets)

    def compare(self, tweet):
        """The share of its runs of four words that no training tweet holds, and one that holds all its words.

        That one is None where there is none. A tweet of fewer than four words counts as one run.
        """
        own = words(tweet)
        runs = [f" {' '.join(own[at : at + GRAM])} " for at in range(max(1, len(own) - GRAM + 1))]
        novelty = sum(run not in self.words for run in runs) / len(runs)
        at = self.words.find(f" {' '.join(own)} ")
        return novelty, None if at < 0 else self.tweets[self.words.count("\n", 0, at)].strip()


def words(text):
    """What is compared: words in small letters; characters where a language has no spaces, or in ":-)"."""
    unspaced = r"\u0e00-\u0eff\u3040-\u9fff"  # Thai, Lao, Japanese, Chinese
    return re.findall(rf"[{unspaced}]|[^\W{unspaced}]+", text.casefold()) or list(text)


def keep(lines, start, settings, path):
    """Add the tweets to the file at `path`, with the settings that made them."""
    how = ("candidates", "max_new_tokens", "min_novelty", "temperature", "min_p", "top_k", "top_p", "seed")
    flags = " ".join(f"--{name}={getattr(settings, name)}" for name in how)
    header = f"# a model's parody, nobody's words: --start={start!r} {flags}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join([header, *lines, "", ""]))


# --- looking inside -------------------------------------------------------------------------------


def plot_attention(model, tokenizer, ids, path):
    """Draw a grid of layers by heads: how much each token (down) looks at each before it (across)."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    ids = ids[: model.config.block_size]
    maps = model.attention_maps(torch.tensor([ids], device=model.wpe.weight.device))[:, 0].cpu().numpy()
    labels = [label(tokenizer, token) for token in ids]
    n_layer, n_head, T, _ = maps.shape
    side = max(2.6, 0.17 * T + 0.9)  # inches; room for each label
    figure = Figure(figsize=(side * n_head + 1, side * n_layer + 0.6), layout="constrained")
    axes = figure.subplots(n_layer, n_head, squeeze=False)
    for layer in range(n_layer):
        for head in range(n_head):
            panel = axes[layer, head]
            # square roots, because one large weight would leave all others black
            image = panel.imshow(maps[layer, head], norm=PowerNorm(0.5, 0, 1), cmap="magma")
            panel.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            panel.set_xticks(range(T), labels, rotation=90, fontsize=7, parse_math=False)
            panel.set_yticks(range(T), labels, fontsize=7, parse_math=False)
    title = "How much each token (a row) looks at itself and those before it (the columns)"
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="attention (each row sums to 1)", shrink=0.8)
    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png")


def label(tokenizer, token):
    """A token's text for a plot; characters that its font lacks, such as emoji, by their code points."""
    text = "<start>" if token == END_OF_TEXT else tokenizer.decode([token]).strip() or "space"
    return "".join(c if c < "\u2e80" else f"U+{ord(c):04X}" for c in text)


# --- the way out ----------------------------------------------------------------------------------


@torch.no_grad()
def export(model, folder):
    """Write a Hugging Face folder that GPT2LMHeadModel and pipeline("text-generation") read.

    Raises UserError for a model that GPT-2 cannot be, and if the folder exists already. A model trained
    with separate_tweets gives the same logits there for a single tweet.
    """
    config = model.config
    if config.compact_vocab or config.n_before:
        fix = "train with --compact_vocab=False --spelling=0 --n_before=0"
        raise UserError(f"export: a GPT-2 has no compact vocabulary and no n_before; {fix}")
    if folder.exists():
        raise UserError(f"export: {folder} already exists; name a new folder")
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
    except ImportError:
        raise UserError("export needs transformers: `pip install transformers`") from None
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    theirs = GPT2LMHeadModel(GPT2Config(n_positions=config.block_size, **shape, **dropout))
    weights = theirs.transformer.state_dict()
    for name, parameter in model.gpt2_parameters():
        weights[name].copy_(parameter)
    merges, vocabulary = vocabulary_files()
    tokenizer = GPT2TokenizerFast(vocabulary, merges, model_max_length=config.block_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as parent:
        beside = pathlib.Path(parent) / folder.name
        theirs.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        beside.replace(folder)
    print(f"wrote {folder}; in Python: transformers.pipeline('text-generation', {str(folder)!r})")


if __name__ == "__main__":
    with errors_in_one_line():
        main(settings)
