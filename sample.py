"""Write new tweets with the model that train.py trained. They are a model's parody, nobody's words.

    python sample.py --start "Tesla"                     # five tweets that begin with Tesla
    python sample.py --num_samples=10 --min_novelty=0.5  # ten, none of them copied
    python sample.py --start=FILE:prompt.txt --seed=7    # the prompt from a file
    python sample.py --start "Tesla is" --attention      # and how the model looks at it
    python sample.py --interactive                       # a prompt a line, until end of file
    python sample.py --export=my-gpt                     # a folder for Hugging Face's transformers

Prints the tweets, each with its novelty, and adds them to out/samples.txt.
"""

import array
import io
import os
import pathlib
import re
import sys
import tempfile
from dataclasses import dataclass

from config import UserError, errors_in_one_line, load_settings, printable, setting, written_whole


@dataclass(frozen=True)
class Settings:
    start: str = setting("", "how the tweets begin; FILE:path reads it from a file", group="what to write")
    num_samples: int = setting(5, "how many tweets to write", within="[1, inf)")
    max_new_tokens: int = setting(64, "the longest continuation, in tokens", within="[1, 1e5]")
    interactive: bool = setting(False, "read prompts from standard input, one per line")
    min_novelty: float = setting(0.0, "redraw tweets that are less new than this", within="[0, 1]")

    temperature: float = setting(
        0.8,
        "below 1 is safer, above 1 wilder; 0 always takes the likeliest token",
        within="[0, inf)",
        group="how to write",
    )
    top_k: int = setting(200, "draw among the k likeliest tokens; 0 for all", within="[0, inf)")
    top_p: float = setting(1.0, "of these, the fewest whose probabilities add up to this", within="(0, 1]")
    repetition_penalty: float = setting(1.0, "above 1 avoids tokens already used", within="[0.1, 10]")
    seed: int = setting(1337, "the same seed gives the same tweets", within="[0, 1e18]")

    attention: bool = setting(
        False, "draw where the model looks in the text, in out_dir/attention.png", group="files"
    )
    out_dir: str = setting("out", "the folder with best.pt; samples.txt is kept there")
    init_from: str = setting("", "write with this GPT-2 (a name or path, as in train.py) instead of best.pt")
    export: str = setting("", "write the model to this new folder, for Hugging Face's transformers, and exit")
    device: str = setting("cpu", "cpu, cuda, …")


if __name__ == "__main__":  # here, so that typos are reported before the slow import of torch
    settings = load_settings(Settings, sys.argv[1:])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py

import numpy as np  # noqa: E402
import torch  # noqa: E402

from model import GPT, choose_device  # noqa: E402
from prepare import END_OF_TEXT, MAX_CHARS, encode, held_out, load_tokenizer, sha256, vocabulary_files  # noqa: E402

BATCH = 100  # samples at a time, so that memory does not grow with their number
MAX_ROUNDS = 20  # of drawing what min_novelty rejects anew
GRAM = 4  # words
HOW = ("max_new_tokens", "min_novelty", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


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
    writer = Writer(settings, model)
    if settings.interactive and sys.stdin.isatty():
        print("type how the tweets begin and press Enter; Ctrl-D ends", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):  # so that a prompt that is no UTF-8 ends nothing
        sys.stdin.reconfigure(errors="replace")
    prompts = sys.stdin if settings.interactive else [settings.start]
    for start in prompts:
        lines = []
        tweet = ""  # the last one, to draw if there is no prompt
        for tweet, novelty, source in writer.write(read_prompt(start)):
            lines.append(tweet if novelty is None else f"{novelty:4.0%} new  {tweet}")
            show(lines[-1] + (f"\n          word for word in: {source}" if source else ""))
        keep(lines, start, settings, out_dir / "samples.txt")
        if settings.attention:
            text = encode(writer.tokenizer, read_prompt(start) or tweet)
            plot_attention(writer.model, writer.tokenizer, [END_OF_TEXT, *text], out_dir / "attention.png")
            print(f"wrote {out_dir}/attention.png", file=sys.stderr)


def read_prompt(start):
    """The text that the tweets begin with: `start` itself, or for FILE:path what that file holds."""
    if start.startswith("FILE:"):
        path = pathlib.Path(start.removeprefix("FILE:").strip())
        try:
            start = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"start: the prompt {path} cannot be read as UTF-8 text: {error}") from None
    if len(start) > MAX_CHARS:
        raise UserError(f"start: {len(start):,} characters are more than a post may have, {MAX_CHARS:,}")
    return " ".join(start.split())


def show(text, end="\n", file=None):
    """Print `text` with control characters escaped, so that no tweet can drive the terminal."""
    file = file or sys.stdout
    safe = "\n".join(map(printable, text.split("\n")))
    known = safe.encode(file.encoding or "utf-8", "backslashreplace")  # not every terminal knows emoji
    print(known.decode(file.encoding or "utf-8"), end=end, file=file, flush=True)


# --- writing --------------------------------------------------------------------------------------


class Writer:
    """A model, its tokenizer and the training tweets, ready for prompt after prompt."""

    def __init__(self, settings, model):
        self.settings, self.model, self.tokenizer = settings, model, load_tokenizer()
        self.seed = settings.seed  # of the next tweet; each has one of its own
        data_dir, self.known = model.notes.get("data_dir"), None
        why = "this model's training tweets are not known"
        if data_dir:
            processed, meta = (pathlib.Path(str(data_dir)) / name for name in ("processed.txt", "meta.json"))
            why = f"{processed} is gone"
            if processed.is_file():
                why = f"{data_dir} now holds other tweets than those of this model"
                if model.notes.get("data") in (None, sha256(meta) if meta.is_file() else None):
                    self.known = TrainingTweets.read(processed)
        if self.known is None:
            if settings.min_novelty:
                raise UserError(f"min_novelty: {why}, so novelty cannot be measured; set it to 0")
            print(f"{why}, so novelty is not shown", file=sys.stderr)

    def write(self, start):
        """Yield num_samples of (tweet, novelty or None, the training tweet that holds all of it or None)."""
        prompt, most = [END_OF_TEXT, *encode(self.tokenizer, start)], self.model.config.block_size
        if len(prompt) - 1 > most:
            told = f"the prompt has {len(prompt) - 1} tokens; the model reads only the last {most}"
            print(f"{told} (block_size)", file=sys.stderr)
        wanted, rejected = self.settings.num_samples, 0
        for _ in range(MAX_ROUNDS):
            missing, wanted = wanted, 0
            for first in range(0, missing, BATCH):
                count = min(BATCH, missing - first)
                seeds = range(self.seed, self.seed + count)
                self.seed += count
                for tweet in self.draw(prompt, seeds):
                    novelty, source = self.known.novelty(tweet) if self.known else (None, None)
                    if novelty is not None and novelty < self.settings.min_novelty:
                        rejected, wanted = rejected + 1, wanted + 1
                    else:
                        yield tweet, novelty, source
            if not wanted:
                break
        if rejected:
            least = f"{self.settings.min_novelty:.0%}"
            print(f"rejected {rejected} tweets that were less than {least} new", file=sys.stderr)
        if wanted:
            total = self.settings.num_samples
            print(
                f"gave up on {wanted} of {total} tweets; lower min_novelty or raise temperature",
                file=sys.stderr,
            )

    def draw(self, prompt, seeds):
        """One tweet per seed, beginning with the ids of `prompt` and ending where the model ends it."""
        settings = self.settings
        rows = [prompt[1:] for _ in seeds]
        live = len(rows) == 1 and sys.stdout.isatty()  # then the tweet appears as it is written
        stream = self.model.stream(
            torch.tensor([prompt] * len(rows), device=self.model.wte.weight.device),
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            stop_token=END_OF_TEXT,
            seeds=seeds,
        )
        for tokens in stream:
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            if live:
                print("\r", end="", file=sys.stderr)
                show(self.text(rows[0])[-100:], end="", file=sys.stderr)
        if live:
            print("\r\x1b[K", end="", file=sys.stderr)
        return [self.text(row) for row in rows]

    def text(self, row):
        """What the ids of a row say, up to where the tweet ends."""
        end = row.index(END_OF_TEXT) if END_OF_TEXT in row else len(row)
        return self.tokenizer.decode(row[:end]).strip()


def keep(lines, start, settings, path):
    """Add the tweets to `path`, with the settings that made them."""
    earlier = path.read_bytes() if path.exists() else b""  # bytes, since another program may have saved it
    how = " ".join(f"--{name}={getattr(settings, name)}" for name in HOW)
    header = f"# a model's parody, nobody's words: --start={start.strip()!r} {how}"
    with written_whole(path, "wb") as file:
        file.write(earlier + "\n".join([header, *lines, "", ""]).encode())


# --- novelty --------------------------------------------------------------------------------------


class TrainingTweets:
    """The word sequences of the tweets that a model was trained on, as hashes: 16 bytes per word."""

    def __init__(self, tweets):
        self.tweets, flat = tweets, array.array("q", [0])
        for tweet in tweets:
            flat.extend(map(hash, words(tweet)))
            flat.append(0)  # separates the tweets
        self.hashes = np.frombuffer(flat, np.int64)
        self.grams = gram_hashes(self.hashes)
        self.grams.sort()

    @classmethod
    def read(cls, path):
        """The training part of prepare.py's processed.txt; held-out tweets do not count as known."""
        with open(path, encoding="utf-8", newline="\n") as file:
            return cls([tweet for tweet in map(str.rstrip, file) if not held_out(tweet)])

    def novelty(self, text):
        """The share of the text's word 4-grams in no training tweet, and a tweet that holds all its words.

        That tweet is None where there is none. A text of fewer than four words counts as one gram.
        """
        own = np.array([hash(word) for word in words(text)], np.int64)
        if not len(own):
            return 1.0, None
        source = self.find(own)
        if len(own) < GRAM or not len(self.grams):
            return float(source is None), source
        wanted = gram_hashes(own)
        places = np.searchsorted(self.grams, wanted).clip(max=len(self.grams) - 1)
        return float((self.grams[places] != wanted).mean()), source

    def find(self, own):
        """The first training tweet that holds these words in a row, or None."""
        places = np.flatnonzero(self.hashes == own[0])
        for offset in range(1, len(own)):  # a match ends before the 0 after its tweet, so all are in range
            places = places[self.hashes[places + offset] == own[offset]]
        return self.tweets[np.count_nonzero(self.hashes[: places[0]] == 0) - 1] if len(places) else None


def words(text):
    return re.findall(r"\w+", text.casefold())


def gram_hashes(hashes):
    """A hash of each run of four words: (n,) int64 -> (n - 3,) uint64."""
    parts = hashes.view(np.uint64)
    total = np.zeros(max(len(parts) - GRAM + 1, 0), np.uint64)
    for offset in range(GRAM):
        total = total * np.uint64(0x9E3779B97F4A7C15) + parts[offset : offset + len(total)]
        total ^= total >> np.uint64(29)
    return total


# --- looking inside -------------------------------------------------------------------------------


def plot_attention(model, tokenizer, ids, path):
    """Draw a grid of layers by heads: how much each token (down) looks at each before it (across)."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    ids = ids[: model.config.block_size]
    maps = model.attention_maps(torch.tensor([ids], device=model.wte.weight.device))[:, 0].cpu().numpy()
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
    figure.suptitle(
        "How much each token (a row) looks at itself and those before it (the columns)", fontsize=10
    )
    figure.colorbar(image, ax=axes, label="attention (each row sums to 1)", shrink=0.8)
    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=100, format="png")


def label(tokenizer, token):
    """A token's text for a plot: what the font cannot draw is written as its code points or bytes."""
    from matplotlib import font_manager

    if token == END_OF_TEXT:
        return "<start>"
    raw = tokenizer.decode_single_token_bytes(token)
    try:
        text = raw.decode().strip() or "space"
    except UnicodeDecodeError:  # a part of a character
        return raw.strip().hex(" ")
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if font.get_char_index(ord(c)) else f"U+{ord(c):04X}" for c in text)


# --- the way out ----------------------------------------------------------------------------------


def export(model, folder):
    """Write a Hugging Face folder that GPT2LMHeadModel and pipeline("text-generation") read.

    Raises UserError for a model that GPT-2 cannot be, and if the folder exists already. A model trained
    with separate_tweets gives the same logits there for a single tweet.
    """
    config = model.config
    if config.compact_vocab or config.output_bias:
        raise UserError(
            "export: a GPT-2 has no compact vocabulary and no output bias; train with --compact_vocab=False "
            "--spelling=0 --ngram_order=0 --noise=0 --output_bias=False"
        )
    if folder.exists():
        raise UserError(f"export: {folder} already exists; name a new folder")
    try:
        from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
    except ImportError:
        raise UserError("export needs transformers: `pip install transformers`") from None
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    gelu = "gelu" if config.gelu == "exact" else "gelu_new"
    theirs = GPT2LMHeadModel(
        GPT2Config(n_positions=config.block_size, activation_function=gelu, **shape, **dropout)
    )
    weights = model.state_dict()
    for name, tensor in theirs.transformer.state_dict().items():
        ours = weights.get(name, torch.zeros_like(tensor))  # a bias that is missing is 0
        tensor.copy_(ours.t() if name.startswith("h.") and ours.dim() == 2 else ours)
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
