"""prepare.py: what people's exports hold is read right or refused in one line, cleaned, split and encoded."""

import doctest
import functools
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib

import numpy as np
import pytest
import tiktoken.load

import prepare

OUTPUTS = ["meta.json", "processed.txt", "train.bin", "val.bin"]
FILLER = [f"filler tweet number {i}" for i in range(40)]  # enough for both splits to hold some
END = prepare.END_OF_TEXT


def cases(names, table):
    """Run a test once for each {id: values of the arguments `names`}."""
    return pytest.mark.parametrize(names, table.values(), ids=table.keys())


@pytest.fixture(scope="module", autouse=True)
def tokenizer():
    """GPT-2's; that its files are read once for all runs makes these tests three times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(tiktoken.load.data_gym_to_mergeable_bpe_ranks)
        patch.setattr(tiktoken.load, "data_gym_to_mergeable_bpe_ranks", read)
        yield prepare.load_tokenizer()


def write(path, content):
    """Write a file of text or bytes, or a folder given as {name: content}."""
    if isinstance(content, dict):
        for name, inner in content.items():
            write(path / name, inner)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def read_back(folder):
    """(tweets, meta) that were written to a folder."""
    tweets = (folder / "processed.txt").read_bytes().decode().split("\n")[:-1]
    return tweets, json.loads((folder / "meta.json").read_text(encoding="utf-8"))


@pytest.fixture
def make(command, the_error, snapshot, tmp_path):
    """Write a file or folder, and run prepare.py on it or on what is `given`.

    The result has the `tweets`, which must be FILLER and others, without FILLER, and `meta`; or else the
    one-line `error`, which must leave the outputs of earlier runs alone.
    """

    def make(content, *flags, name="in.csv", given=""):
        write(tmp_path / name, content)
        write(tmp_path / "out", dict.fromkeys(OUTPUTS, "from before"))
        before = snapshot(tmp_path / "out")
        done = command("prepare.py", tmp_path / (given or name), *flags, f"--data_dir={tmp_path / 'out'}")
        done.tweets, done.error = None, the_error(done, "prepare.py") if done.code else None
        if done.error:
            assert snapshot(tmp_path / "out") == before
        else:
            tweets, done.meta = read_back(tmp_path / "out")
            assert sorted(tweet for tweet in tweets if tweet in FILLER) == sorted(FILLER)
            done.tweets = [tweet for tweet in tweets if tweet not in FILLER]
        return done

    return make


def table(rows, separator=","):
    """A CSV of `rows`, of which a text is one of one cell, and of FILLER in all columns."""
    rows = [[row] if isinstance(row, str) else row for row in rows]
    rows += [[tweet] * len(rows[0]) for tweet in FILLER]
    rows = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(separator.join(row) + "\n" for row in rows)


def archive(tweets):
    """What X's archive holds as data/tweets.js."""
    items = [{"tweet": {"id": "1", "full_text": tweet}} for tweet in tweets]
    return f"window.YTD.tweets.part0 = {json.dumps(items, indent=2)}"


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def is_val(tweet):
    """The rule of the split, as it was decided: no change may move tweets across."""
    key = re.sub(r"[\W_]+", "", tweet.casefold()) or tweet
    return zlib.crc32(key.encode("utf-8")) % 100 < 10


# --- cleaning -------------------------------------------------------------------------------------

CLEAN = {
    "entities": ("&lt;3 &amp; escaped&amp;amp;twice, line&#10;break", "<3 & escaped&twice, line break"),
    "white space": (" two\n\nlines\tand\u00a0gaps\u2028\u3000too ", "two lines and gaps too"),
    "links": ("look https://t.co/abc here HTTP://EXAMPLE.COM/a?b=c", "look here"),
    "links of pictures": ("Wow!pic.x.com/Zy9 a picture pic.twitter.com/Zy9", "Wow! a picture"),
    "links with spaces": ("old https:// youtu.be/q7 and https://www. nasa.gov/x scraper", "old and scraper"),
    "a link without spaces": ("火星https://t.co/abcへ行く", "火星へ行く"),
    "a sign of kelvin is no k": ("K\u212a https://t.co/K1k", "K\u212a"),
    "parentheses": ("(more https://t.co/a) or (https://t.co/b) now a.example/M_(x) is", "(more) or now is"),
    "cut after a word": ("orbit is hard …https://t.co/abc", "orbit is hard …"),
    "cut with an entity": ("orbit is har&#8230; https://t.co/abc", "orbit is …"),
    "cut in a link before the link": ("a real pic https://t.co/abc… https://t.co/def", "a real pic …"),
    "cut in a link": ("orbit is hard https://t.co/a…", "orbit is hard …"),
    "cut in https:": ("orbit is hard https:…", "orbit is hard …"),
    "cut in http": ("orbit is hard http…", "orbit is hard …"),
    "cut in the only word": ("@a @b har… https://t.co/abc", ""),
    "marks of the writer's": ("well … yes … https://t.co/abc no…", "well … yes … no…"),
    "many links": ("Sources… " + "https://t.co/abcdefghij " * 40 + "enjoy", "Sources… enjoy"),
    "a single word is not cut": ("Soon… https://t.co/abc", "Soon…"),
    "handles at the start": ("  @a\n@b_2:\tYes, ask @c", "Yes, ask @c"),
    "a handle behind a link, entities in both": ("https&#58;//t.co/abc &commat;a hello", "hello"),
    "a handle's own": ("@nasa's probe and @esa’s", None),
    "a handle without spaces": ("@nasaさん、どうも", "さん、どうも"),
    "too long for a handle": ("@sixteen_letters_ is none", None),
    "halves of surrogates": ("half \ud83d and whole \ud83d\ude80", "half \ufffd and whole 🚀"),
    # others' words
    "a comment on a retweet": ("Well said. RT @ann_b: rockets are loud", "Well said."),
    "behind strokes, in brackets": ("Well said >> (RT @ann_b: rockets", "Well said"),
    "without a colon": ("Well said! RT @ann_b rockets are loud", "Well said!"),
    "in quotes": ("Well said RT “@ann_b: rockets are loud” indeed", "Well said"),
    "a modified tweet": ("Yes MT @ann_b: rockets", "Yes"),
    "only asked for": ("Please RT @ann_b's call, RT @ann_b", None),
    "a quotation": ("“@ann_b: so “very” loud” I agree", "I agree"),
    "other quotes": ('Ha! "@ann_b : I said "go" twice". „@ann_b: laut“ «@c: fort»', "Ha!"),
    "a cut quotation": ("No way “@ann_b: rockets are lo… https://t.co/x", "No way"),
    "own words in quotes": ("“@nasa is great”, “@ann_b” says", None),
    "what a page shows": ("Replying to @a, @b and @c My cat flies", "My cat flies"),
    # what joins handles to the sentence, and what does not
    "joined": ("@a : @b - @c; @d/@e! @f & @g... so it is", "so it is"),
    "a subject": ("@a @b and @c fly", "@b and @c fly"),
    "smileys": ("@a :) yes", ":) yes"),
    "a list": ("@a - one thing - another", "- one thing - another"),
    "signs alone": ("@a @b ?!", "?!"),
    # links
    "bare links": ("WWW.NASA.example/a, bit.ly/q7 (kites.example/shop?id=5) no", "no"),
    "no links": ("https, pic. a://b X.com, e.g. v1.2/3 and/or 5.5m/s U.S./China me@a.example", None),
    "a mark behind a link": ("see https://a.example/b … and https://t.co/c …", "see and"),
    "a link's beginning": ("as seen on https:/", "as seen on"),
    "a link's first letters": ("as seen on http", "as seen on"),
    # what stands for characters
    "mojibake": ("itâ€™s cafÃ© ðŸš€ â€œhiâ€\x9d Ð´Ð°", "it’s café 🚀 “hi” да"),
    "twice": ("itÃ¢â‚¬â„¢s", "it’s"),
    "half of it like a space": ("un cafÃ©, voilÃ\xa0", "un café, voilà"),
    "no mojibake": ("CAFÉ… “MENÜ” l’été à Ñandú Ã", None),
    "Latin-1": ("it\x92s", "it’s"),
    "R": ("<U+2764><U+FE0F> <U+0001F680> <ed><U+00A0><U+00BD><ed><U+00BA><U+0080> <c3><a9> <e9>",
        "❤️ 🚀 🚀 é é"),
    "Python": (r"it\'s \xe2\x9c\x85 \u00e9 \ud83d\ude80 \U0001f680\r\na\tb https:\/\/t.co\/x \_/",
        r"it's ✅ é 🚀 🚀 a b \_/"),
    "bytes": (r"b'caf\xc3\xa9 it\'s \xf0\x9f\x9a\x80'", "café it's 🚀"),
    "bytes in other quotes": (r'b"it\'s\nmine"', "it's mine"),
    "no bytes": ("b'half of one, \"a saying\"", None),
    "HTML": ("<p>5 &lt; 6<BR/>a<b>b</b></p><p><a href=\"x\" class='y'>@<span>c</span></a></p>",
        "5 < 6 ab @c"),
    "no HTML": ("I <3 it, a < b > c, <Run Program> if a<b and c>d &lt;b&gt;",
        "I <3 it, a < b > c, <Run Program> if a<b and c>d <b>"),
    "what is not seen": ("\u2068@a\u2069 so\u200b \u00adlo\ufeffng\x07", "so long"),
    "any signs, and what joins": ('"so", <|endoftext|>, 🚀 and ü 👩\u200d🚀 می\u200cخواهم', None),
}  # fmt: skip


@cases(("text", "tweet"), CLEAN)
def test_cleaning(text, tweet):
    assert prepare.clean(text) == (text if tweet is None else tweet)


def test_the_examples_of_clean_are_right():
    done = doctest.testmod(prepare)
    assert (done.failed, done.attempted) == (0, 2)


MARKS = {  # column: (what marks others' posts in it, what does not)
    "is_retweet": (["True", "t", " yes ", "Y"], ["False", "0", ""]),
    "isRetweet": (["1.0"], ["0.0"]),
    "RETWEET": (["1"], ["0"]),
    "Type": (["Retweet", "quoted"], ["Quote", "Tweet"]),
    "post_type": (["RT"], ["post"]),
    "Tweet Type": (["repost"], ["reply"]),
    "retweet": ([], ["1", "0", "17"]),  # it counts, and marks nothing
    "retweets": ([], ["1", "0"]),
    "retweeted": ([], ["1", "True"]),  # X's word for a tweet that others passed on
}


@pytest.mark.parametrize("column", MARKS)
def test_posts_that_a_column_marks_as_others_are_dropped(make, column):
    others, own = MARKS[column]
    rows = [[mark, f"tweet {n}"] for n, mark in enumerate(others + own)]
    done = make(table([[column, "text"], *rows]))
    assert done.tweets == [tweet for _, tweet in rows[len(others) :]]
    assert done.meta["dropped"] == ({"retweets": len(others)} if others else {})


@pytest.mark.parametrize("column", ["User_Name", "author.username", "from_user", "account"])
def test_one_author(make, column):
    content = "\n".join([f"{column},text", "esa,said", " @NASA,said", *(f"nasa,{t}" for t in FILLER)])
    done = make(content, "--user=Nasa")
    assert (done.tweets, done.meta["dropped"]) == (["said"], {"by other authors": 1})
    assert "3: 40 nasa, 1 esa, 1 @NASA; --user" in make(content).out
    assert "authors: 40 nasa, 1 esa, 1 @NASA; is it the right" in make(content, "--user=me").error


# --- reading --------------------------------------------------------------------------------------

ONE, TWO = [["id", "text"], ["1", "NA"]], [["Tweet", "id"], ["“Füße”, two\nlines; a\ttab", "7"]]
OF_ONE, OF_TWO, LINES = ["NA"], ["“Füße”, two lines; a tab"], "\n".join(FILLER)
STRAY = ["Füße 🚀".encode(), "Straße “quoted” … 5 €".encode("cp1252"), LINES.encode()]
FULLER = [["text", "full_text"], ["cut o… https://t.co/x", "cut off no more, all is here"], ["only here", ""]]
RETWEETS = ["RT @a: b", "RT@a", "RT\u00a0@a", '"rt @a', "“RT @a", "\u200bRT @a", "RT : @a", "RT &#64;a"]
MIXED = table(["text", "@a @b see @c's a@b.c https://t.co/x", "https://t.co/y is har… https://t.co/z"])
NUMBERS = ["0", "1", "2"]
OBJECTS = [{"id": n, "text": tweet, "user": {"screen_name": "nasa"}} for n, tweet in enumerate(FILLER)]
OBJECTS += [{"text": "it's “new”\n🚀", "lang": None}, {"text": None}]
JSON_LINES = "\n".join(map(json.dumps, OBJECTS))
NESTED = [{"legacy": {"full_text": tweet}, "quoted_status": {"full_text": "x"}} for tweet in FILLER]
KITE = {"text": "cut…", "user": {"name": "K", "screen_name": "kite"}}
KITES = [KITE | {"note_tweet": {"text": tweet}} for tweet in FILLER]
OUTBOX = {"orderedItems": [{"object": "a://b"}, *({"object": {"content": tweet}} for tweet in FILLER[:9])]}
FEED = {"feed": [{"post": {"record": {"text": tweet}}} for tweet in FILLER[9:]]}
FEED["feed"][0]["reason"] = {"$type": "app.bsky.feed.defs#reasonPin"}  # an own post, pinned
FEED["feed"].append({"post": {"record": {"text": "shared"}}, "reason": {"by": "me"}})
STATUSES = [{"content": tweet, "reblog": None} for tweet in FILLER] + [{"content": "x", "reblog": {"id": 1}}]
LATE = [*({"text": tweet} for tweet in FILLER * 126), {"text": "x", "reblog": {"id": 1}}]  # after 5,000 rows
PRINTED = "\n".join(json.dumps(item, indent=1) for item in [*OBJECTS, {"text": float("nan")}])
LIKE_ROWS = [["", "text"], ["123", "Great!\n100,000 sold"], ["2", "1, silk\n2, string"], ["7", "a\n3,5 km"]]
TAB = 'id\ttext\n1\t"So" it is\n2\tsay "go"\n3\t"whole ""cell"""\n4\t"open\n'
TAB += "".join(f"0\t{tweet}\n" for tweet in FILLER)
MARKED = "".join(f"<|startoftext|>{tweet}<|endoftext|>\n" for tweet in ["in two\nlines", *FILLER])
CUT_AT = ["text", *(f"{word} and the wind was so strong {'over the hills ' * 8}"[:120] for word in "abcdef")]
README = "What this folder holds\nand who made it"
OF_LINES = zipped({"b.txt": LINES, "picture.png": b"\x89PNG"})
PACKED = zipped({"README.txt": README, "a/t.csv": table(ONE), "__MACOSX/x.csv": "text\nx\n"})
POSTS = ["RT @nasa: We landed", "Rockets &amp; cars", "good \ud83d morning", None, *FILLER]
ARCHIVE = {
    "data/account.js": "window.YTD.account.part0 = []", "data/README.txt": README, "x.csv": "text\nx\n",
    "data/tweets.js": archive(FILLER[:9]), "data/tweets-part1.js": archive(FILLER[9:]),
}  # fmt: skip

READ = {  # id: (file name and flags, content, tweets)
    "semicolons, Windows-1252": ("in.csv", table(TWO, ";").encode("cp1252"), OF_TWO),
    "tabs with a BOM": ("in.tsv", table(TWO, "\t").encode("utf-8-sig"), OF_TWO),
    "Excel's Unicode text": ("in.txt", table(TWO, "\t").encode("utf-16"), OF_TWO),
    "a table named .txt": ("in.txt", table(TWO), OF_TWO),
    "a table without a suffix": ("export", table(TWO, ";"), OF_TWO),
    "a zip of a table": ("in.zip", PACKED, OF_ONE),
    "CRLF": ("in.csv", table(ONE).replace("\n", "\r\n"), OF_ONE),
    "blank lines": ("in.csv", "\n\n" + table(ONE).replace("\n", "\n\n  \n"), OF_ONE),
    "repeated headers": ("in.csv", table(ONE) + table(ONE).replace("NA", "007"), ["NA", "007"]),
    "retweets": ("in.csv", table(["text", *RETWEETS, "art@home", "Art, @home"]), ["art@home", "Art, @home"]),
    "too long": ("in.csv", table(["text", "a" * 25_000, "." + " " * 1_000_000 + "."]), ["a" * 25_000]),
    "lines like a header": ("in.txt", f"Tweet\n{LINES}", ["Tweet"]),
    "a line like an author": ("in.txt", f"Author, retweet\n{LINES}", ["Author, retweet"]),
    "a stray byte": ("in.txt", b"\n".join(STRAY), ["Füße 🚀", "Straße “quoted” … 5 €"]),
    "gzipped lines": ("in.txt.gz", gzip.compress(LINES.replace("\n", "\r\n").encode()), []),
    "a folder of lines": ("in", {"a.zip": OF_LINES, "data/processed.txt": "made by prepare.py"}, []),
    "a list of objects": ("in.zip", zipped({"a.json": json.dumps(OBJECTS, indent=1)}), ["it's “new” 🚀"]),
    "Python's dicts": ("in.txt", "\n".join(map(repr, OBJECTS)), ["it's “new” 🚀"]),
    "an object a line": ("in.ndjson", JSON_LINES, ["it's “new” 🚀"]),
    "objects in a gz": ("in.jsonl.gz --user=@NASA", gzip.compress(JSON_LINES.encode()), []),
    "objects in objects": ("in.json", json.dumps(NESTED), []),
    "X's long posts and handles": ("in.json --user=@kite", json.dumps(KITES), []),
    "objects over several lines": ("in.json", PRINTED, ["it's “new” 🚀"]),
    "shared posts": ("in.json", json.dumps(STATUSES), []),
    "a shared post, late": ("in.jsonl", "\n".join(map(json.dumps, LATE)), []),
    "lists with a name": ("in", {"a.json": json.dumps(FEED), "b.json": json.dumps(OUTBOX)}, []),
    "a list of texts": ("in.json", json.dumps(FILLER), []),
    "a list within": ("in.json", json.dumps({"data": OBJECTS[:-2], "meta": {"text": "x"}}, indent=1), []),
    "an empty list, too": ("in.json", json.dumps({"data": [], "posts": OBJECTS[:-2]}), []),
    "a key of one's own": ("in.json --text_column=legacy.full_text", json.dumps(NESTED), []),
    "pipes": ("in.csv", table(TWO, "|"), OF_TWO),
    "bare commas in the one column": ("in.csv", "text\na, b\n" + LINES, ["a, b"]),
    "Excel's first line": ("in.csv", "sep=;\n" + table(TWO, ";"), OF_TWO),
    "its first line in quotes": ("in.csv", '"sep=;"\n' + table(TWO, ";"), OF_TWO),
    "a tweet like it": ("in.csv", table(["text", "sep=; is Excel's"]), ["sep=; is Excel's"]),
    "lines like rows": ("in.csv", table(LIKE_ROWS), ["Great! 100,000 sold", "1, silk 2, string", "a 3,5 km"]),
    "tabs, all in quotes": ("in.tsv", table(ONE, "\t"), OF_ONE),
    "tabs without quotes": ("in.tsv", TAB, ['"So" it is', 'say "go"', 'whole "cell"', '"open']),
    "marks of GPT-2's trainers": ("in.txt", MARKED, ["in two lines"]),
    "brackets": ("my [2023] *.csv", table(ONE), OF_ONE),
    "tweets.js": ("tweets.js", archive(POSTS), ["Rockets & cars", "good \ufffd morning"]),
    "an older tweet.js": ("tweet.js", archive(FILLER), []),
    "X's archive": ("twitter.zip", zipped(ARCHIVE), []),
    # the text column
    "the likeliest name": ("in.csv", table([["body", "content", "text"], NUMBERS]), ["2"]),
    "the fuller text": ("in.csv", table(FULLER), ["cut off no more, all is here", "only here"]),
    "of alike the first": ("in.csv", table([["text", "post", "text"], ["a", "7", ""], ["", "9", ""]]), ["a"]),
    "named": ("in.csv --text_column my_words", table([["id", "My words", "text"], NUMBERS]), ["1"]),
    # how it is cleaned; the link to a cut tweet's rest is the source's, and not kept
    "mentions kept": ("in.csv --mentions=keep", MIXED, ["@a @b see @c's a@b.c", "is …"]),
    "mentions stripped": ("in.csv --mentions=strip", MIXED, ["see a@b.c", "is …"]),
    "links kept": ("in.csv --urls=keep", MIXED, ["see @c's a@b.c https://t.co/x", "https://t.co/y is …"]),
    "short ones dropped": ("in.csv --min_chars=5", MIXED, ["see @c's a@b.c"]),
}  # fmt: skip


@cases(("words", "content", "tweets"), READ)
def test_what_is_read(make, words, content, tweets):
    name, *flags = words.split() if " -" in words else [words]
    assert make(content, *flags, name=name).tweets == tweets


def test_where_an_exporter_cuts_the_cut_word_goes(make):
    whole = ["x" * 119 + ".", "see https://t.co/" + "y" * 103]
    tweets = make(table([*CUT_AT, *whole])).tweets
    assert tweets == [*(f"{text.rpartition(' ')[0]} …" for text in CUT_AT[1:]), whole[0], "see"]
    assert not any("…" in tweet for tweet in make(table(CUT_AT[:5])).tweets)  # too few to tell
    near = [f"{tweet[:112]} {n}" for n, tweet in enumerate(CUT_AT[1:])]  # as where people fill a limit
    assert not any("…" in tweet for tweet in make(table([*CUT_AT, *near])).tweets)


def test_in_a_folder_the_archive_wins_then_tables_then_text(make):
    rest = {"LICENSE.txt": README, ".venv/x.csv": "text\nhidden\n", "followers.csv": "id,name\n1,a\n"}
    rest |= {"data/processed.txt": "written here", "data/meta.json": '{"text": "written here"}'}
    assert "among id, name" in make(rest, name="rest").error
    bare = {"LICENSE.txt": README, "tweets.xlsx": ""}
    assert "only LICENSE.txt, tweets.xlsx" in make(bare, name="bare").error
    tables = rest | {"b.csv": table(["text"]), "a.tsv": table(ONE, "\t"), "c.txt": LINES}
    done = make(tables, name="tables")
    assert (done.tweets, done.meta["sources"]) == (OF_ONE, ["a.tsv", "b.csv"])
    assert "c.txt" in done.err and "among id, name" in done.err
    packed = {"tweets.js": archive(["the archive's", *FILLER]), "note-tweet.js": archive([])}
    done = make(tables | {"twitter.zip": zipped(packed)}, name="all")
    assert done.tweets == ["the archive's"]
    assert done.err.count("\n") == 1 and "left out" in done.err and "b.csv" in done.err


@pytest.mark.parametrize("given", ["x/data/tweets.js", "x", "x.zip"])
def test_long_posts_of_the_archive_are_taken_whole_from_its_notes(make, given):
    long = "The first of many words on rockets & how they are built, " + "and so on, " * 40 + "end"
    other = "Another long post" * 20
    cut = "@bob " + long.replace("&", "&amp;")[:272] + "… https://t.co/x"
    notes = [{"noteTweet": {"core": {"text": text}}} for text in (f"@bob {long}", other, "Lonely")]
    files = {
        "data/tweets.js": archive([cut, other[:279], "The first of many", *FILLER]),
        "data/note-tweet.js": f"window.YTD.note_tweet.part0 = {json.dumps(notes)}",
    }
    done = make({"x": files, "x.zip": zipped(files)}, name="", given=given)
    assert done.tweets == [long, other, "Lonely", "The first of many"]
    assert "2 beginnings of long posts" in done.out


def test_several_files_are_joined_and_each_tweet_kept_once(make, tmp_path):
    a, b = ["text", "both", *FILLER[:20]], ["Tweet", "both", *FILLER[20:]]
    files = {"a.csv": "\n".join(a), "b.csv": "\n".join(b)}
    files[".hidden/ab.zip"], packed = zipped(files), tmp_path / ".hidden" / "ab.zip"
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    named = (first, second), (second, f"--input={first}"), ("?.csv",), (tmp_path, first), (packed, packed)
    for given, *flags in named:
        done = make(files, *flags, name="", given=given)
        assert done.tweets == ["both"] and "42 rows of a.csv, b.csv" in done.out
        assert (done.meta["rows"], done.meta["dropped"]) == (42, {"duplicates": 1})


ROWS = "".join(f"{100 + i},2020-01-{10 + i},{tweet}\n" for i, tweet in enumerate(FILLER[:20]))
REFUSED = {  # id: (file name and flags, content, what is told)
    "missing": ("in.csv", {}, "no such file"),
    "empty": ("in.csv", "\n\n", "empty"),
    "no column": ("in.csv", "id,when\n1,2\n", "among id, when: name one with --text_column"),
    "bytes": ("in.csv", bytes(range(256)) * 20, "no column"),
    "half a gz": ("in.csv.gz", gzip.compress(table(TWO).encode())[:-20], "cannot be read"),
    "no file": ("x", {"tweets.js": archive(FILLER), "tweet.js": {"a": ""}}, "tweet.js cannot be read ("),
    "no gz": ("in.csv.gz", "text\nhello", "zipped"),
    "half a zip": ("in.zip", PACKED[:-30], "cannot be read"),
    "a zip of nothing": ("in.zip", zipped({"a.png": "x"}), "only a.png"),
    "a spreadsheet": ("in.xlsx", zipped({"workbook.xml": "<x>"}), "save a spreadsheet as a CSV"),
    "no objects": ("in.json", "[]", "empty"),
    "one key": ("in.json", '[{"bio": "a"}]', "among bio: name one with --text_column=…; a"),
    "some files": ("in", {"a.json": "[]", "b.csv": "id,x\n"}, "a.json holds no tweets: it is empty"),
    "other objects": ("in.json", '[{"id": 1, "user": {"bio": "a"}}]', "among id, user.bio: name one"),
    "half an object": ("in.jsonl", '{"text": "a"}\n{"text": ', "cannot be read"),
    "half a dict": ("in.txt", "{'text': 'a'", "cannot be read"),
    "no header": ("in.csv", f"7,2020-01-01,a\n{ROWS}", "2020-01-01, a: name one with --text_column=…; a"),
    "no header, one column": ("in.csv", f"it is a long first tweet\n{LINES}", "must be named .txt"),
    "lines before the header": ("in.csv", f"Export of me\n\nid,date,text\n{ROWS}", "text, and nothing above"),
    "one column": ("in.csv", f"words\n{LINES}", "a text with a tweet a line must be named .txt"),
    "half a tweets.js": ("tweets.js", archive(FILLER)[:-40], "is damaged"),
    "another js": ("ad.js", 'window.YTD.ad.part0 = [{"ad": {"id": "1"}}]', "no table, text or archive"),
    "a table without authors": ("in.csv --user=nasa", table(ONE), "leave out --user"),
    "lines without authors": ("in.txt --user=nasa", LINES, "leave out --user"),
    # nothing is left
    "no words": ("in.csv", "text\n@a\nRT @a: b\n", "0 rows are too few to split; read: 2 in.csv; d"),
    "a long one": ("in.csv", f"text\n{'a' * 25_001}", "dropped: 1 longer than 25,000 characters;"),
    "one": ("in.csv", "user,text\nnasa,alone\n", "too few to split; read: 1 in.csv; dropped: none"),
    # rows whose cells may be shifted, with their line
    "a bare comma": ("in.csv", f"id,date,text\n{ROWS}7,x,cold, very cold\n", "line 22: 4 cells"),
    "a name too few": ("in.csv", f"id,text\n{ROWS}", "line 2: 3 cells, but the columns have 2 names"),
    "a bare separator at once": ("in.csv", "text;id;x\nhi; it is cold;2;L2\nb;3;L3\n", "line 2: 4 cells"),
    "a short row, blank lines": ("in.csv", f"id,date,text\n\n{ROWS}\n7,x\n", "line 24: 2 cells"),
    "swallowed": ("in.csv", f'id,date,text\n7,2020-01-09,"a\n{ROWS}8,x,b"\n', "line 2: a stray quote"),
    "a quote without an end": ("in.csv", f'id,date,text\n{ROWS}7,x,"open\n{ROWS}', "line 22: "),
    "quotes escaped by a stroke": ("in.csv", 'id,text\n1,"he \\"hi\\", loud"\n', "line 2: "),
}  # fmt: skip


@cases(("words", "content", "told"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(make, words, content, told):
    name, *flags = words.split()
    error = make(content, *flags, name=name).error
    assert told in f"{error}\n" and name in error


# --- splitting and tokens -------------------------------------------------------------------------


def test_the_split_is_decided_by_letters_and_digits_alone():
    # "Straße 0" and "Straße 5" tell casefold() from lower()
    for tweet in ["a_b", "Straße 0", "Straße 5", *FILLER[:20]]:
        variants = [tweet, tweet.upper(), tweet.lower(), f"{tweet}!", f"“{tweet}”", tweet.replace(" ", "_")]
        assert {prepare.held_out(variant) for variant in variants} == {is_val(tweet)}, tweet
    for signs in ("🚀", "🤖", "..."):  # their own keys; the robot alone is in val
        assert prepare.held_out(signs) == is_val(signs), signs


def test_the_tokens_are_gpt2s(tokenizer):
    for text, ids in (("Hello world", [15496, 995]), ("🚀", [8582, 248, 222])):
        assert tokenizer.encode_ordinary(text) == ids and tokenizer.decode(ids) == text
    assert tokenizer.n_vocab == 50257 and tokenizer.eot_token == END == 50256
    assert prepare.encode(tokenizer, "Tesla") == [11938] and prepare.encode(tokenizer, "") == []
    assert prepare.encode(tokenizer, "<|endoftext|>") == [1279, 91, 437, 1659, 5239, 91, 29]
    tweets = [tweet for text, _ in CLEAN.values() if (tweet := prepare.clean(text))]
    ids = [i for tweet in tweets for i in (END, *prepare.encode(tokenizer, tweet))]
    assert prepare.encode_tweets(tokenizer, tweets).tolist() == ids
    texts = prepare.token_texts()
    assert (len(texts), texts[11938], texts[222]) == (50257, " Tesla", "\ufffd")


def test_the_sample_is_written_as_documented(prepared, tokenizer):
    assert sorted(path.name for path in prepared.folder.iterdir()) == OUTPUTS
    tweets, meta = read_back(prepared.folder)
    assert len(set(tweets)) == len(tweets) and all(t and t == " ".join(t.split()) for t in tweets)
    for name, side in (("train", False), ("val", True)):
        part = [tweet for tweet in tweets if is_val(tweet) == side]
        ids = np.fromfile(prepared.folder / f"{name}.bin", "<u2").tolist()
        assert tokenizer.decode(ids) == "".join(f"<|endoftext|> {t}" for t in part) + "<|endoftext|>"
        assert ids.count(END) - 1 == len(part) == meta[f"{name}_tweets"]
        assert (len(ids), len(set(ids))) == (meta[f"{name}_tokens"], meta[f"{name}_distinct_tokens"])
        assert meta[f"{name}_bytes"] == sum(len(tweet.encode()) + 1 for tweet in part)
    assert meta["tweets"] == len(tweets) == meta["rows"] - sum(meta["dropped"].values())
    assert {"retweets", "duplicates", "empty"} <= meta["dropped"].keys()
    assert (meta["tokenizer"], meta["leading_space"]) == ("gpt2", True)
    assert meta["sources"] == ["sample_tweets.csv"]
    assert meta["train_sha256"] == hashlib.sha256((prepared.folder / "train.bin").read_bytes()).hexdigest()


# --- what the user sees ---------------------------------------------------------------------------


def test_the_summary_tells_what_was_done(prepared):
    meta = read_back(prepared.folder)[1]
    told = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", prepared.out)}
    counted = [meta[f"{name}_{what}"] for name in ("train", "val") for what in ("tweets", "tokens", "bytes")]
    assert {meta["rows"], meta["tweets"], *counted, *meta["dropped"].values()} <= told and prepared.err == ""
    # the next command names the folder that this one wrote
    words = shlex.split(prepared.out.splitlines()[-1])
    assert words[:4] == ["next", sys.orig_argv[0], "train.py", "config/elon.py"]
    assert words[4:] == [f"--data_dir={prepared.folder}", f"--out_dir=out/{prepared.folder.name}"]


def test_a_dry_run_shows_ten_tweets_and_writes_nothing(shell, repo, tmp_path):
    write(tmp_path / "in.csv", table(["text", "@a Hi &amp; bye\x1b[2J 火星", "@b", "RT @c: d"]))
    words = repo / "prepare.py", tmp_path / "in.csv", "--dry_run", f"--data_dir={tmp_path / 'out'}"
    done = shell(*words, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})  # as an old terminal has it
    assert done.code == 0, done.err
    assert done.out.startswith("before  @a Hi &amp; bye\\x1b[2J \\u706b\\u661f\nafter   Hi & bye[2J \\u706b")
    assert "after   (dropped: empty)" in done.out and "after   (dropped: retweets)" in done.out
    assert done.out.count("before") == done.out.count("after") == 10
    assert not (tmp_path / "out").exists()


FETCHED = {  # id: (what is fetched, what is told)
    "a zip": (zipped({"readme.txt": "hello", "elon_musk_tweets.csv": table([["id", "text"]])}), ""),
    "no table": (zipped({"readme.txt": "hello"}), "no item named"),
    "no server": (OSError("refused"), "refused"),
}


@cases(("content", "problem"), FETCHED)
def test_without_input_tweets_are_fetched_once_or_invented(command, monkeypatch, tmp_path, content, problem):
    def urlopen(url, timeout):
        assert url == prepare.KAGGLE_URL
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path))
    data, kaggle = tmp_path / "data", "elon_musk_tweets.csv"
    done = command("prepare.py", "--data_dir=~/data")
    (tweets, meta), kept = read_back(data), {path.name for path in data.iterdir()}
    if problem:
        assert (meta["sources"], kept) == (["sample_tweets.csv"], set(OUTPUTS))
        told = done.err.splitlines()[-1]
        assert problem in told and "sample_tweets.csv" in told and "www.kaggle.com/datasets" in told
    else:
        assert (tweets, meta["sources"], kept) == (FILLER, [kaggle], {*OUTPUTS, kaggle})
        monkeypatch.setattr(urllib.request, "urlopen", None)
        assert command("prepare.py", f"--data_dir={data}").err == ""


def test_many_tweets_are_all_kept_and_told_to_go_into_the_large_preset(make):
    tweets = [f"{n} kites" for n in range(60_000)]  # more than are in memory at once
    done = make("\n".join([*tweets, *FILLER]), name="in.txt")
    assert done.tweets == tweets
    assert done.meta["train_tokens"] > 150_000 and " config/large.py " in done.out.splitlines()[-1]


def test_ctrl_c_stops_it_and_leaves_nothing(repo, tmp_path):
    with open(tmp_path / "in.txt", "w", encoding="utf-8") as file:
        file.writelines(f"tweet number {n}\n" for n in range(500_000))
    words = [sys.executable, repo / "prepare.py", tmp_path / "in.txt", f"--data_dir={tmp_path / 'out'}"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, encoding="utf-8")
    while not (tmp_path / "out" / "val.bin.tmp").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].strip() == "stopped" and process.returncode == 130
    assert not any((tmp_path / "out").iterdir())
