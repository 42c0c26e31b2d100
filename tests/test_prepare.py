"""prepare.py: what people's exports hold is read right or refused in one line, cleaned, split and encoded."""

import collections
import doctest
import functools
import gzip
import hashlib
import io
import json
import re
import shlex
import sys
import zipfile
import zlib

import hypothesis
import numpy as np
import pytest
import tiktoken.load
from hypothesis import strategies as st

import prepare

OUTPUTS = ["meta.json", "processed.txt", "train.bin", "val.bin"]
END = 50256
FILLER = [f"filler tweet number {i}" for i in range(40)]  # enough for both splits to hold some
LINES = "\n".join(FILLER)


@pytest.fixture(scope="module", autouse=True)
def tokenizer():
    """GPT-2's; that its files are read once for all runs makes these tests three times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(tiktoken.load.data_gym_to_mergeable_bpe_ranks)
        patch.setattr(tiktoken.load, "data_gym_to_mergeable_bpe_ranks", read)
        yield prepare.load_tokenizer()


@pytest.fixture
def run(command, tmp_path):
    """prepare.py on the given files, into tmp_path/out."""

    def run(*words):
        return command("prepare.py", *words, f"--data_dir={tmp_path / 'out'}")

    return run


@pytest.fixture
def tweets_of(run, tmp_path):
    """The tweets that prepare.py makes of a file, which must hold FILLER, beside FILLER."""

    def tweets_of(content, *flags, name="in.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        done = run(tmp_path / name, *flags)
        assert done.code == 0, done.err
        tweets = lines_of(tmp_path / "out")
        assert sorted(tweet for tweet in tweets if tweet in FILLER) == sorted(FILLER)
        return [tweet for tweet in tweets if tweet not in FILLER]

    return tweets_of


@pytest.fixture
def refused(run, the_error, snapshot, tmp_path):
    """The one line on stderr with which prepare.py refuses a file; earlier outputs stay as they are."""

    def refused(content, *flags, name="in.csv"):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        for output in OUTPUTS:
            (out / output).write_text("from before")
        before = snapshot(out)
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        error = the_error(run(tmp_path / name, *flags), "prepare.py")
        assert snapshot(out) == before
        return error

    return refused


def lines_of(folder):
    return (folder / "processed.txt").read_bytes().decode().split("\n")[:-1]


def meta_of(folder):
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def table(rows, separator=",", filled="9"):
    """A CSV of `rows` and FILLER, whose tweets stand in the last column, with `filled` in the others."""
    filler = [[filled] * (len(rows[0]) - 1) + [tweet] for tweet in FILLER]
    rows = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows + filler]
    return "".join(separator.join(row) + "\n" for row in rows)


def archive(tweets, number=0):
    """What X's archive holds as data/tweets.js."""
    items = [{"tweet": {"id": str(n), "full_text": tweet}} for n, tweet in enumerate(tweets)]
    return f"window.YTD.tweets.part{number} = {json.dumps(items, indent=2)}"


def notes(*texts):
    items = [{"noteTweet": {"noteTweetId": str(n), "core": {"text": text}}} for n, text in enumerate(texts)]
    return f"window.YTD.note_tweet.part0 = {json.dumps(items)}"


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def read_bin(path, tokenizer):
    """The tweets in a token file, checked to stand between <|endoftext|> and to begin with a space each."""
    ids = np.fromfile(path, "<u2")
    assert ids[0] == ids[-1] == END
    tweets = [tokenizer.decode(part[1:].tolist()) for part in np.split(ids, np.flatnonzero(ids == END))[1:-1]]
    assert all(tweet.startswith(" ") for tweet in tweets)
    return [tweet[1:] for tweet in tweets]


def is_val(tweet):
    """The rule of the split, as it was decided."""
    key = re.sub(r"[\W_]+", "", tweet.casefold()) or tweet
    return zlib.crc32(key.encode("utf-8")) % 100 < 10


# --- cleaning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cell", "tweet"),
    [
        ("entities", "Rockets &amp; cars &lt;3", "Rockets & cars <3"),
        ("entities", "escaped&amp;amp;twice, line&#10;break", "escaped&twice, line break"),
        ("white space", " two\n\nlines\tand\u00a0gaps\u2028\u3000too ", "two lines and gaps too"),
        ("links", "look https://t.co/abc here http://example.com/a?b=c", "look here"),
        ("links", "HTTPS://T.CO/ABC loud", "loud"),
        ("links", "a picture pic.twitter.com/Zy9 and pic.x.com/Zy9", "a picture and"),
        ("links", "old https:// youtu.be/q7 and https://www. nasa.gov/x scraper", "old and scraper"),
        ("links", "see https&#58;//t.co/abc now", "see now"),
        ("links", "火星https://t.co/abcへ行く", "火星へ行く"),
        ("links", "K\u212a https://t.co/K1k", "K\u212a"),  # the sign of kelvin, which is a k to some
        ("links", "(more at https://t.co/a) or (https://t.co/b) now", "(more at) or now"),
        ("links", "https://en.wikipedia.org/wiki/Mars_(planet) is red", "is red"),
        ("links", "no link: https, pic. and a://b", "no link: https, pic. and a://b"),
        ("cut off", "orbit is har… https://t.co/abc", "orbit is …"),
        ("cut off", "orbit is hard …https://t.co/abc", "orbit is hard …"),
        ("cut off", "orbit is har&#8230; https://t.co/abc", "orbit is …"),
        ("cut off", "a real pic https://t.co/abc… https://t.co/def", "a real pic …"),
        ("cut off", "orbit is hard https:…", "orbit is hard …"),
        ("cut off", "orbit is hard http…", "orbit is hard …"),
        ("cut off", "orbit is hard https://t.co/a…", "orbit is hard …"),
        ("cut off", "@a @b har… https://t.co/abc", ""),
        ("meant", "wait for it…", "wait for it…"),
        ("meant", "well … yes … https://t.co/abc no", "well … yes … no"),
        ("meant", "Soon… https://t.co/abc", "Soon…"),
        ("handles", "  @a\n@b_2\tYes, ask @c", "Yes, ask @c"),
        ("handles", "https://t.co/abc @a hello", "hello"),
        ("handles", "&commat;a hello", "hello"),
        ("handles", "@nasa: we landed", "we landed"),
        ("handles", "@nasa's probe and @esa’s", "@nasa's probe and @esa’s"),
        ("handles", "@nasaさん、どうも", "さん、どうも"),
        ("handles", "@sixteen_letters_ is none", "@sixteen_letters_ is none"),
        ("handles", "me@example.com", "me@example.com"),
        ("surrogates", "half \ud83d and whole \ud83d\ude80", "half \ufffd and whole 🚀"),
        ("kept", "NA", "NA"),
        ("kept", "007", "007"),
        ("kept", '"so", <|endoftext|>, 🚀 and ü', '"so", <|endoftext|>, 🚀 and ü'),
        ("nothing", " \n ", ""),
        ("nothing", "@a @b https://t.co/abc", ""),
        ("nothing", "…", ""),
    ],
)  # fmt: skip
def test_cleaning(kind, cell, tweet):
    assert prepare.clean(cell) == tweet


def test_the_examples_of_clean_are_right():
    [test] = doctest.DocTestFinder(recurse=False).find(prepare.clean, "clean", globs={"clean": prepare.clean})
    assert doctest.DocTestRunner().run(test) == (0, 2)


@pytest.mark.parametrize(
    ("flag", "tweets"),
    [
        ("--mentions=reply", ["see @c's a@b.c"]),
        ("--mentions=keep", ["@a @b see @c's a@b.c"]),
        ("--mentions=strip", ["see a@b.c"]),
        ("--urls=keep", ["see @c's a@b.c https://t.co/x"]),
        ("--min_chars=17", []),
    ],
)
def test_cleaning_switches(tweets_of, tmp_path, flag, tweets):
    assert tweets_of(table([["text"], ["@a @b see @c's a@b.c https://t.co/x"]]), flag) == tweets
    name, value = flag.removeprefix("--").split("=")
    assert str(meta_of(tmp_path / "out")[name]) == value


def test_the_link_to_a_cut_tweets_rest_is_the_sources_even_where_links_are_kept():
    tweet = "look https://t.co/a orbit is har… https://t.co/b"
    assert prepare.clean(tweet, prepare.Settings(urls="keep")) == "look https://t.co/a orbit is …"


def test_cells_written_as_bytes_or_as_json(tweets_of):
    cells = {
        r"b'caf\xc3\xa9 it\'s \xf0\x9f\x9a\x80'": "café it's 🚀",
        r'b"it\'s\nmine"': "it's mine",
        "b'half of one": "b'half of one",
        r'"caf\u00e9 \"ole\" \ud83d\ude80"': 'café "ole" 🚀',
        '"a saying"': '"a saying"',
        r'"a \ stroke"': r'"a \ stroke"',
    }
    assert tweets_of(table([["text"], *([cell] for cell in cells)])) == list(cells.values())


# --- others' words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "others", "own"),
    [
        ("is_retweet", ["True"], ["False", "0", ""]),
        ("isRetweet", ["t"], ["f"]),
        ("Is Retweet", [" yes "], ["no"]),
        ("retweet", ["1.0"], ["0.0"]),
        ("RETWEET", ["Y"], ["N"]),
        ("Type", ["Retweet", "quoted"], ["Quote", "Tweet"]),  # a quote is a comment of one's own
        ("post_type", ["repost"], ["post"]),
        ("Tweet Type", ["retweet"], [""]),
        ("retweet", [], ["1", "0", "17"]),  # counts
        ("retweeted", [], ["1", "True"]),  # of X's own API, which means something else
    ],
)
def test_what_a_column_marks_as_others_words_is_dropped(tweets_of, tmp_path, column, others, own):
    rows = [[mark, f"is {mark}"] for mark in others + own]
    assert tweets_of(table([[column, "text"], *rows], filled="")) == [f"is {mark}".strip() for mark in own]
    assert meta_of(tmp_path / "out")["dropped"].get("retweets", 0) == len(others)


def test_retweets_by_their_first_letters_are_dropped(tweets_of):
    starts = ["RT @a: ", "rt @a ", "RT@a ", "RT\u00a0@a ", '"RT @a ', "“RT @a ", "\u200bRT @a ", "RT : @a "]
    rows = [["text"], *([f"{start}his words"] for start in starts), ["art@home"], ["Art, @home"]]
    assert tweets_of(table(rows)) == ["art@home", "Art, @home"]


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "flags", "column"),
    [
        ("id,text,x", (), 1),
        ("x, FULL_TEXT ,id", (), 1),
        ("Tweet Content,id,x", (), 0),
        ("id,x,rawContent", (), 2),
        ("id,Embedded_text,x", (), 1),
        ("id,tweet-text,status", (), 1),
        ("body,content,text", (), 2),  # in the order of the names, not of the columns
        ("id,post,text", ["--text_column=Post"], 1),
        ("id,my words,text", ["--text_column", "my_words"], 1),
    ],
)
def test_the_text_column_is_found(tweets_of, header, flags, column):
    rows = [[f"{i} in column {i}" for i in range(3)], *([tweet] * 3 for tweet in FILLER)]
    assert tweets_of("\n".join([header, *map(",".join, rows)]), *flags) == [f"{column} in column {column}"]


def test_of_text_and_full_text_the_fuller_is_taken(tweets_of):
    rows = [["text", "full_text"], ["cut o… https://t.co/x", "cut off no more"], ["only here", ""]]
    assert tweets_of(table(rows)) == ["cut off no more", "only here"]


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [
        ("in.csv", ",", "utf-8"),
        ("in.csv", ";", "cp1252"),
        ("in.tsv", "\t", "utf-8-sig"),
        ("in.txt", "\t", "utf-16"),  # Excel's "Unicode text"
        ("in.txt", ",", "utf-8"),
        ("export", ";", "utf-8"),
    ],
)
def test_a_first_line_with_a_text_column_makes_a_table(tweets_of, name, separator, encoding):
    content = table([["id", "Tweet"], ["7", "“Füße”, two\nlines; a\ttab"]], separator)
    assert tweets_of(content.encode(encoding), name=name) == ["“Füße”, two lines; a tab"]


def test_odd_tables_are_read(tweets_of):
    one = table([["id", "text"], ["1", "a"]])
    assert tweets_of(one.replace("\n", "\r\n")) == ["a"]
    assert tweets_of("\n\n" + one.replace("\n", "\n\n  \n")) == ["a"]
    assert tweets_of(one.replace("\n", ",\n").replace(",\n", "\n", 1)) == ["a"]
    assert tweets_of(one + one.replace('"a"', '"b"')) == ["a", "b"]


def test_a_stray_byte_leaves_the_other_characters_alone(tweets_of):
    lines = ["Füße 🚀".encode(), "Straße “quoted” … 5 €".encode("cp1252"), LINES.encode()]
    assert tweets_of(b"\n".join(lines), name="in.txt") == ["Füße 🚀", "Straße “quoted” … 5 €"]


def test_a_list_in_a_tweet_is_no_swallowed_row(tweets_of):
    rows = [["id", "text"], ["1544379368478212100", "my list:\n1, cars\n2, rockets"]]
    assert tweets_of(table(rows)) == ["my list: 1, cars 2, rockets"]


def test_longer_than_a_post_can_be_is_dropped_and_counted(tweets_of, tmp_path):
    cells = [["text"], ["a" * 25_000], ["b" * 25_001], ["." + " " * 1_000_000]]
    assert tweets_of(table(cells)) == ["a" * 25_000]
    assert meta_of(tmp_path / "out")["dropped"] == {"longer than 25,000 characters": 2}


@pytest.mark.parametrize("column", ["User_Name", "author.username", "Screen Name", "account"])
def test_one_author(tweets_of, refused, run, tmp_path, column):
    content = table([[column, "text"], [" @NASA", "of nasa"], ["esa", "of esa"]], filled="nasa")
    assert tweets_of(content, "--user=Nasa") == ["of nasa"]
    assert meta_of(tmp_path / "out")["dropped"] == {"by other authors": 1}
    assert "authors   3: 40 nasa, 1 @NASA, 1 esa; --user" in run(tmp_path / "in.csv").out
    assert "no row by --user=me; most are by 40 nasa, 1 @NASA" in refused(content, "--user=me")
    assert "leave out --user" in refused(LINES, "--user=nasa", name="in.txt")


# --- files, folders and archives ------------------------------------------------------------------

README = "What this folder holds\nand who made it"
EXPORTS = {
    "lines.txt": LINES,
    "lines.txt.gz": gzip.compress(LINES.replace("\n", "\r\n").encode()),
    "packed.csv.gz": gzip.compress(table([["id", "text"]], ";").encode()),
    "packed.zip": zipped({"README.txt": README, "a/t.csv": table([["text"]]), "__MACOSX/x.csv": "text\nx\n"}),
    "lines.zip": zipped({"b.txt": LINES, "picture.png": b"\x89PNG"}),
    "tweets.js": archive(FILLER),
    "tweet.js": archive(FILLER).replace("tweets.part", "tweet.part"),
    "twitter.zip": zipped({
        "data/account.js": "window.YTD.account.part0 = []", "data/README.txt": README, "x.csv": "text\nx\n",
        "data/tweets.js": archive(FILLER[:9]), "data/tweets-part1.js": archive(FILLER[9:], 1),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_formats(tweets_of, name):
    assert tweets_of(EXPORTS[name], name=name) == []


def test_in_a_folder_the_archive_wins_then_tables_then_text(run, the_error, tmp_path):
    home = tmp_path / "in"
    for name, content in (
        ("LICENSE.txt", README),
        (".venv/other.csv", "text\nhidden\n"),
        ("data/processed.txt", "made by prepare.py"),
        ("followers.csv", "id,name\n1,a\n"),
        ("b.csv", table([["text"]])),
        ("a.txt", table([["id", "text"], ["1", "first"]], "\t")),
        ("twitter/data/account.js", "window.YTD.account.part0 = [{}]"),
        ("twitter/data/tweets.js", archive(["the archive's", *FILLER])),
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    done = run(home)
    assert lines_of(tmp_path / "out") == ["the archive's", *FILLER]
    assert done.err.count("\n") == 1 and "left out" in done.err and "b.csv" in done.err
    (home / "twitter/data/tweets.js").unlink()
    run(home)
    assert lines_of(tmp_path / "out") == ["first", *FILLER]
    assert meta_of(tmp_path / "out")["sources"] == ["a.txt", "b.csv"]
    for name in ("a.txt", "b.csv"):
        (home / name).unlink()
    assert "among id, name" in the_error(run(home), "prepare.py")


def test_long_posts_of_the_archive_are_taken_whole_from_its_notes(run, tmp_path):
    long = "@bob The first of many words on rockets & how they are built, " + "and so on, " * 40 + "end"
    other = "Another long post" * 20
    tweets = [
        long.replace("&", "&amp;")[:277] + "… https://t.co/x",
        other[:279],
        "The first of many",
        *FILLER,
    ]
    files = {"tweets.js": archive(tweets), "note-tweet.js": notes(long, other, "Lonely")}
    home = tmp_path / "archive" / "data"
    home.mkdir(parents=True)
    for name, content in files.items():
        (home / name).write_text(content)
    (tmp_path / "x.zip").write_bytes(zipped({f"data/{name}": content for name, content in files.items()}))
    for given in (home / "tweets.js", home.parent, tmp_path / "x.zip"):
        done = run(given)
        assert lines_of(tmp_path / "out") == [
            prepare.clean(long),
            other,
            "Lonely",
            "The first of many",
            *FILLER,
        ]
        assert "2 beginnings of long posts" in done.out


def test_an_archive_holds_retweets_escapes_surrogates_and_null(tweets_of):
    tweets = ["RT @nasa: We landed", "Rockets &amp; cars", "good \ud83d morning", None, *FILLER]
    assert tweets_of(archive(tweets), name="tweets.js") == ["Rockets & cars", "good \ufffd morning"]


def test_several_files_are_joined_and_each_tweet_kept_once(command, write_csv, tmp_path):
    first = write_csv(tmp_path / "a.csv", [["text"], ["both"], *([t] for t in FILLER[:20])])
    second = write_csv(tmp_path / "b.csv", [["Tweet"], ["both"], *([t] for t in FILLER[20:])])
    for words in ([first, second], [f"--input={first}", second], [tmp_path / "?.csv"], [tmp_path, first]):
        done = command("prepare.py", *words, f"--data_dir={tmp_path / 'out'}")
        assert sorted(lines_of(tmp_path / "out")) == sorted(["both", *FILLER])
        meta = meta_of(tmp_path / "out")
        assert meta["sources"] == ["a.csv", "b.csv"]
        assert (meta["rows"], meta["dropped"]) == (42, {"duplicates": 1})
        assert "42 rows of a.csv, b.csv" in done.out


ROWS = "".join(f"{100 + i},2020-01-{10 + i},{tweet}\n" for i, tweet in enumerate(FILLER[:20]))
TABLES = {  # each is told with its line or its columns
    "a bare separator": (f"id,date,text\n{ROWS}7,x,cold, very cold\n", "line 22: 4 cells"),
    "a bare separator at an end": (f"id,date,text\n{ROWS}7,x,cold,\n", "line 22: 4 cells"),
    "a bare separator at once": ("text;id;link\nhi there; it is cold;2;L2\nb;3;L3\n", "line 2: 4 cells"),
    "fewer cells": (f"id,date,text\n{ROWS}7\n", "line 22: 1 cells"),
    "fewer cells, blank lines": (f"id,date,text\n\n{ROWS}\n7,x\n", "line 24: 2 cells"),
    "swallowed rows": (f'id,date,text\n7,x,"a\n{ROWS}8,x,b"\n{ROWS}', "line 2: a stray quote"),
    "swallowed rows, text first": ('text,id\na,10\n"b,11\nc,12\nd",13\ne,14\n', "line 3: a stray quote"),
    "a quote without an end": (f'id,date,text\n{ROWS}7,x,"open\n{ROWS}', "line 22: a stray quote"),
    "quotes escaped by a stroke": ('id,text\n1,"he said \\"hi\\", loud"\n', "line 2: a stray quote"),
    "empty": ("\n\n", "empty"),
    "no column": ("id,when\n1,2\n", "among id, when: name one with --text_column"),
    "a likely column": ("id,words\n" + "1,one speaks at length here\n" * 9, "--text_column='words'"),
    "bytes": (bytes(range(256)) * 20, "no column"),
    "missing": (None, "no such file"),
}
FILES = {
    "gone-*.csv": (None, "no such file"),
    "half.csv.gz": (EXPORTS["packed.csv.gz"][:-20], "cannot be read"),
    "no.csv.gz": ("text\nhello", "zipped"),
    "half.zip": (EXPORTS["packed.zip"][:-30], "cannot be read"),
    "nothing.zip": (zipped({"a.png": "x"}), "no .csv"),
    "spreadsheet.xlsx": (zipped({"workbook.xml": "<x>"}), "save a spreadsheet or JSON as a CSV"),
    "some.json": ('[{"text": "a"}]', "save a spreadsheet or JSON as a CSV"),
    "tweets.js": (EXPORTS["tweets.js"][:-40], "tweets.js"),
    "other.js": ("window.YTD.account.part0 = [1]", "tweets.js"),
}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        *(pytest.param("in.csv", *harm, id=kind) for kind, harm in TABLES.items()),
        *(pytest.param(name, *harm, id=name) for name, harm in FILES.items()),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(refused, name, content, told):
    error = refused(content, name=name)
    assert told in error and name in error


@pytest.mark.parametrize(
    ("content", "flags", "told"),
    [
        ("text\n", [], "cleaning left none of 0 rows"),
        ("text\n@a\nhttps://t.co/x\n", [], "none of 2 rows (2 empty): wrong column?"),
        ("text\nRT @a: b\nRT @a: c\n", [], "none of 2 rows (2 retweets)\n"),
        ("text\nalone\n", [], "1 tweets are too few"),
        (table([["text"]]), ["--user=nasa"], "no column of authors among text; leave out --user"),
    ],
)
def test_where_nothing_is_left_the_reason_is_told(refused, content, flags, told):
    assert told in refused(content, *flags) + "\n"


# --- splitting and tokens -------------------------------------------------------------------------


# "Straße 0" and "Straße 5" tell casefold() from lower(), and the robot alone is in val
@pytest.mark.parametrize("tweet", ["🚀", "🤖", "...", "a_b", "Straße 0", "Straße 5", *FILLER[:20]])
def test_the_split_is_decided_by_letters_and_digits_alone(tweet):
    assert prepare.held_out(tweet) == is_val(tweet)
    if prepare.letters(tweet):  # a text of signs alone is its own key
        for variant in (tweet.upper(), tweet.lower(), f"{tweet}!", f"“{tweet}”", tweet.replace(" ", "_")):
            assert prepare.held_out(variant) == is_val(tweet), variant


def test_the_tokens_are_gpt2s(tokenizer):
    for text, ids in (("Hello world", [15496, 995]), ("🚀", [8582, 248, 222])):
        assert tokenizer.encode_ordinary(text) == ids and tokenizer.decode(ids) == text
    assert tokenizer.n_vocab == 50257 and tokenizer.eot_token == END
    assert prepare.encode(tokenizer, "Tesla") == [11938] and prepare.encode(tokenizer, "") == []
    assert prepare.encode(tokenizer, "<|endoftext|>") == [1279, 91, 437, 1659, 5239, 91, 29]
    texts = prepare.token_texts()
    assert (len(texts), texts[11938], texts[222]) == (50257, " Tesla", "\ufffd")


def test_the_tokenizer_needs_no_network(shell, tmp_path):
    code = (
        "import socket\ndef refuse(*args, **how): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import prepare; print(prepare.load_tokenizer().encode('Hello world'))"
    )
    done = shell("-c", code, env={"TIKTOKEN_CACHE_DIR": str(tmp_path)})
    assert done.out.strip() == "[15496, 995]", done.err


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.lists(st.text(min_size=1)))
def test_tweets_encoded_together_have_the_tokens_of_each_alone(tokenizer, texts):
    tweets = [tweet for text in texts if (tweet := prepare.clean(text))]
    together = prepare.encode_tweets(tokenizer, tweets)
    assert together.dtype == np.uint16
    assert together.tolist() == [i for tweet in tweets for i in (END, *prepare.encode(tokenizer, tweet))]


def test_the_sample_is_written_as_documented(prepared, tokenizer):
    folder, meta = prepared.folder, meta_of(prepared.folder)
    assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
    tweets = lines_of(folder)
    assert len(set(tweets)) == len(tweets) and all(t and t == " ".join(t.split()) for t in tweets)
    for name, part in (
        ("train", [t for t in tweets if not is_val(t)]),
        ("val", [t for t in tweets if is_val(t)]),
    ):
        path = folder / f"{name}.bin"
        assert read_bin(path, tokenizer) == part
        counts = collections.Counter(np.fromfile(path, "<u2").tolist())
        assert counts[END] == len(part) + 1 == meta[f"{name}_tweets"] + 1
        assert meta[f"{name}_tokens"] * 2 == path.stat().st_size
        assert meta[f"{name}_bytes"] == sum(len(tweet.encode()) + 1 for tweet in part)
        assert meta[f"{name}_distinct_tokens"] == len(counts)
    assert meta["tweets"] == len(tweets) == meta["rows"] - sum(meta["dropped"].values())
    assert {"retweets", "duplicates", "empty"} <= meta["dropped"].keys()
    assert (meta["tokenizer"], meta["leading_space"]) == ("gpt2", True)
    assert meta["sources"] == ["sample_tweets.csv"]
    assert meta["train_sha256"] == hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest()


def test_the_same_tweets_under_another_name_are_the_same_tokens(prepared, run, repo, tmp_path):
    (tmp_path / "renamed.csv").write_bytes((repo / "data" / "sample_tweets.csv").read_bytes())
    run(tmp_path / "renamed.csv")
    for name in ("processed.txt", "train.bin", "val.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (prepared.folder / name).read_bytes()
    assert meta_of(tmp_path / "out")["train_sha256"] == meta_of(prepared.folder)["train_sha256"]


# --- what the user sees ---------------------------------------------------------------------------


def test_the_summary_tells_what_was_done(prepared):
    meta = meta_of(prepared.folder)
    told = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", prepared.out)}
    numbers = [
        f"{name}_{what}"
        for name in ("train", "val")
        for what in ("tweets", "tokens", "bytes", "distinct_tokens")
    ]
    assert {meta[name] for name in ["rows", "tweets", *numbers]} | set(meta["dropped"].values()) <= told
    assert lines_of(prepared.folder)[0][:50] in prepared.out
    assert prepared.err == ""


def test_the_next_command_names_the_folder_that_it_wrote(prepared):
    words = shlex.split(prepared.out.splitlines()[-1])
    folder = prepared.folder
    assert words[:4] == ["next", sys.orig_argv[0], "train.py", "config/elon.py"]
    assert words[4:] == [f"--data_dir={folder}", f"--out_dir=out/{folder.name}"]


def test_a_dry_run_shows_ten_tweets_and_writes_nothing(run, write_csv, tmp_path):
    rows = [["@a Hi &amp; bye\x1b[2J"], ["@b"], ["RT @c: d"], *([tweet] for tweet in FILLER)]
    done = run(write_csv(tmp_path / "in.csv", [["text"], *rows]), "--dry_run")
    assert done.code == 0, done.err
    assert done.out.startswith("before  @a Hi &amp; bye\\x1b[2J\nafter   Hi & bye\\x1b[2J\n")
    assert "after   (dropped: empty)" in done.out and "after   (dropped: retweets)" in done.out
    assert done.out.count("before") == done.out.count("after") == 10
    assert not (tmp_path / "out").exists()


def test_a_terminal_that_lacks_a_character_shows_it_escaped(shell, write_csv, repo, tmp_path):
    path = write_csv(tmp_path / "in.csv", [["text"], ["火星 🚀 é"], *([tweet] for tweet in FILLER)])
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for flag in ("--dry_run", "--min_chars=2"):
        done = shell(repo / "prepare.py", path, flag, f"--data_dir={tmp_path / 'out'}", env=env, cwd=tmp_path)
        assert done.code == 0, done.err
        assert "\\u706b\\u661f \\U0001f680 \\xe9" in done.out


# --- without input --------------------------------------------------------------------------------

DOWNLOADS = {
    "tweets.zip": (zipped({"readme.txt": "hello", "any.csv": table([["id", "text"]])}), ""),
    "garbage": (b"<html>Please log in</html>" * 100, "not a zip"),
    "cut-off.zip": (zipped({"any.csv": table([["text"]])})[:-30], "not a zip"),
    "no-csv.zip": (zipped({"readme.txt": "hello"}), "StopIteration"),
    "gone.zip": (None, "No such file"),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_without_input_the_tweets_are_fetched_once_or_the_sample_is_used_aloud(command, tmp_path, name):
    content, problem = DOWNLOADS[name]
    if content:
        (tmp_path / name).write_bytes(content)
    data, url = tmp_path / "data", (tmp_path / name).as_uri() if name else ""
    done = command("prepare.py", f"--data_dir={data}", f"--download_url={url}")
    assert done.code == 0, done.err
    [source] = meta_of(data)["sources"]
    if problem:
        assert source == "sample_tweets.csv"
        told = done.err.splitlines()[-1]
        assert all(word in told for word in (problem, source, prepare.KAGGLE_PAGE, str(data)))
    else:
        assert (source, lines_of(data)) == (prepare.CSV_NAME, FILLER)
        (tmp_path / name).unlink()  # the second run uses the file that was kept
        assert command("prepare.py", f"--data_dir={data}", f"--download_url={url}").err == ""
    assert sorted({path.name for path in data.iterdir()} - {prepare.CSV_NAME}) == OUTPUTS


def test_a_server_that_cannot_be_reached(command, tmp_path):
    done = command("prepare.py", f"--data_dir={tmp_path}", "--download_url=http://127.0.0.1:9/x.zip")
    assert done.code == 0 and "refused" in done.err and "Traceback" not in done.err
