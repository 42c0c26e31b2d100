"""Write new tweets with the model that train.py trained. They are a model's parody, nobody's words.

    python sample.py --start "Tesla"                     # five tweets that begin with Tesla
    python sample.py --num_samples=10 --temperature=1.0  # ten that begin as they like
    python sample.py --start=FILE:prompt.txt --seed=7    # the prompt from a file

Prints the tweets and adds them to out/samples.txt.
"""

import pathlib
import sys
from dataclasses import dataclass

from config import UserError, errors_in_one_line, load_settings, setting, written_whole


@dataclass(frozen=True)
class Settings:
    start: str = setting("", "how the tweets begin; FILE:path reads it from a file", group="what to write")
    num_samples: int = setting(5, "tweets to write", within="[1, inf)")
    max_new_tokens: int = setting(64, "the longest continuation, in tokens", within="[1, inf)")
    temperature: float = setting(
        0.8, "below 1 plays safe, above 1 dares; 0 is greedy", within="[0, inf)", group="how"
    )
    top_k: int = setting(200, "draw among the k likeliest tokens; 0 for all", within="[0, inf)")
    seed: int = setting(1337, "the same seed gives the same tweets", within="[0, inf)")
    out_dir: str = setting("out", "the folder with best.pt; samples.txt is kept there", group="files")
    device: str = setting("cpu", "cpu, cuda, mps, …")


if __name__ == "__main__":  # here, so that a typing mistake is answered before torch is imported
    settings = load_settings(Settings, sys.argv[1:], example='python sample.py --start "Tesla"')

import torch  # noqa: E402

from model import GPT, choose_device  # noqa: E402
from prepare import END_OF_TEXT, MAX_CHARS, encode, load_tokenizer  # noqa: E402


def main(settings):
    out_dir = pathlib.Path(settings.out_dir)
    model = GPT.load(out_dir / "best.pt", choose_device(settings.device))
    tokenizer = load_tokenizer()
    prompt = [END_OF_TEXT, *encode(tokenizer, read_prompt(settings.start))]
    tweets = write_tweets(model, tokenizer, prompt, settings)
    for number, tweet in enumerate(tweets, 1):
        print(f"{number:3}  {tweet}")
    keep(tweets, settings, out_dir / "samples.txt")


def read_prompt(start):
    """The text that the tweets begin with: `start` itself, or for FILE:path what that file holds."""
    if start.startswith("FILE:"):
        path = pathlib.Path(start.removeprefix("FILE:"))
        try:
            start = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"start: the prompt {path} cannot be read as UTF-8 text: {error}") from None
    if len(start) > MAX_CHARS:
        raise UserError(f"start: {len(start):,} characters are more than a post may have, {MAX_CHARS:,}")
    return " ".join(start.split())


def write_tweets(model, tokenizer, prompt, settings):
    """`num_samples` tweets (a list of str) that begin with the ids `prompt` and end where the model ends."""
    device = next(model.parameters()).device
    tokens = model.generate(
        torch.tensor([prompt] * settings.num_samples, device=device),
        settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        stop_token=END_OF_TEXT,
        seeds=range(settings.seed, settings.seed + settings.num_samples),
    )
    tweets = []
    for row in tokens[:, 1:].tolist():  # without the <|endoftext|> that begins each
        end = row.index(END_OF_TEXT) if END_OF_TEXT in row else len(row)
        tweets.append(tokenizer.decode(row[:end]).strip())
    return tweets


def keep(tweets, settings, path):
    """Add the tweets to `path`, with the settings that made them."""
    earlier = path.read_text(encoding="utf-8") if path.exists() else ""
    how = " ".join(
        f"--{name}={getattr(settings, name)!r}"
        for name in ("start", "max_new_tokens", "temperature", "top_k", "seed")
    )
    with written_whole(path) as file:
        file.write(f"{earlier}# a model's parody, nobody's words: {how}\n")
        file.writelines(f"{tweet}\n" for tweet in tweets)
        file.write("\n")


if __name__ == "__main__":
    with errors_in_one_line():
        main(settings)
