"""From CSVs to token files: cleaning, splitting, encoding, what is refused, and the download."""

import collections
import contextlib
import csv
import gzip
import http.server
import io
import json
import re
import shlex
import socket
import sys
import threading
import time
import zipfile
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import prepare
import train
from config import load_settings

OUTPUTS = ["meta.json", "processed.txt", "train.bin", "val.bin"]
END = 50256
FILLER = [f"filler tweet number {i}" for i in range(40)]  # enough for both splits to hold some


@pytest.fixture(scope="module")
def tokenizer():
    return prepare.load_tokenizer()


@pytest.fixture
def run(command, tmp_path):
    """prepare.py on the given files, into tmp_path/out."""

    def run(*paths, flags=()):
        inputs = [f"--input={path}" for path in paths]
        return command("prepare.py", *inputs, f"--data_dir={tmp_path / 'out'}", *flags)

    return run


@pytest.fixture
def tweets_of(run, write_csv, tmp_path):
    """The lines of processed.txt for a CSV with these cells in its column `text`."""

    def tweets_of(cells):
        done = run(write_csv(tmp_path / "in.csv", [["text"], *([cell] for cell in cells)]))
        assert done.code == 0, done.err
        return lines_of(tmp_path / "out")

    return tweets_of


def lines_of(folder):
    return (folder / "processed.txt").read_bytes().decode().split("\n")[:-1]


def read_bin(path, tokenizer):
    """The tweets in a token file, checked to stand between <|endoftext|> and to begin with a space each."""
    ids = np.fromfile(path, "<u2").tolist()
    assert ids[0] == END and ids[-1] == END
    tweets, tweet = [], []
    for token in ids[1:]:
        if token == END:
            text = tokenizer.decode(tweet)
            assert text.startswith(" ")
            tweets.append(text[1:])
            tweet = []
        else:
            tweet.append(token)
    return tweets


def is_val(tweet):
    """The rule of the split, as it was decided."""
    key = re.sub(r"[\W_]+", "", tweet.casefold()) or tweet
    return zlib.crc32(key.encode("utf-8")) % 100 < 10


# --- cleaning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, tweet",
    [
        # one step each, in their order
        ("Rockets &amp; cars &lt;3", "Rockets & cars <3"),
        ("look https://t.co/abc here", "look here"),
        ("look http://example.com/a?b=c", "look"),
        ("a cut-off thou… https://t.co/abc", "a cut-off thou"),
        ("a cut-off thou …", "a cut-off thou"),
        ("wait… what", "wait… what"),
        ("@a @b_2 Yes", "Yes"),
        ("  @a\n@b\tYes", "Yes"),
        ("Ask @a about it", "Ask @a about it"),
        ("me@example.com", "me@example.com"),
        (" two\n\nlines\tand  gaps ", "two lines and gaps"),
        ("non\u00a0breaking\u2028separators\u3000too", "non breaking separators too"),
        # where the order of the steps shows
        ("see https&#58;//t.co/abc now", "see now"),
        ("cut&#8230; https://t.co/abc", "cut"),
        ("https://t.co/abc @a hello", "hello"),
        ("&commat;a hello", "hello"),
        ("line&#10;break", "line break"),
        ("one&amp;amp;two", "one&amp;two"),
        # nothing to clean
        ("NA", "NA"),
        ("nan", "nan"),
        ("007", "007"),
        ("1.50", "1.50"),
        ("True", "True"),
        ('"quoted", with commas', '"quoted", with commas'),
        ("emoji 🚀🔥 and ünïcödé", "emoji 🚀🔥 and ünïcödé"),
        ("<|endoftext|>", "<|endoftext|>"),
        # nothing left
        ("", None),
        ("  \n ", None),
        ("@a @b", None),
        ("@a https://t.co/abc", None),
        ("…", None),
    ],
    ids=repr,
)
def test_cleaning(cell, tweet):
    assert prepare.clean(cell) == (tweet or "")


def test_the_files_hold_what_cleaning_leaves_in_order_and_once(tweets_of):
    cells = ["@a b", "NA", "two\nlines", "", "NA", "@c NA", "na", "@x", '"q", r', "1.50"]
    assert tweets_of([*cells, *FILLER]) == ["b", "NA", "two lines", "na", '"q", r', "1.50", *FILLER]


@pytest.mark.parametrize("mark", ["True", "TRUE", "true", " True ", "1"])
def test_retweets_are_dropped(run, write_csv, tmp_path, mark):
    rows = [["is_retweet", "text"], [mark, "not mine"], ["False", "mine"], ["", "also mine"]]
    done = run(write_csv(tmp_path / "in.csv", rows + [["False", tweet] for tweet in FILLER]))
    assert lines_of(tmp_path / "out") == ["mine", "also mine", *FILLER]
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["dropped"] == {"retweets": 1}
    assert "1 retweets" in done.out


# --- splitting ------------------------------------------------------------------------------------


# "Straße 0" and "Straße 5" tell casefold() from lower(), and the robot alone is in val
@pytest.mark.parametrize("tweet", ["🚀", "🤖", "...", "a_b", "Straße 0", "Straße 5", *FILLER[:20]])
def test_the_split_is_decided_by_letters_and_digits_alone(tweet):
    assert prepare.held_out(tweet) == is_val(tweet)
    letters = re.sub(r"[\W_]+", "", tweet)
    for variant in (tweet.upper(), tweet.lower(), f"{tweet}!", f"“{tweet}”", tweet.replace(" ", "_")):
        if letters:  # a text of signs alone is its own key
            assert prepare.held_out(variant) == is_val(tweet), variant


def test_adding_and_reordering_rows_moves_no_tweet(run, write_csv, tmp_path, tokenizer):
    def splits(tweets):
        assert run(write_csv(tmp_path / "in.csv", [["text"], *([t] for t in tweets)])).code == 0
        return [set(read_bin(tmp_path / "out" / f"{name}.bin", tokenizer)) for name in ("train", "val")]

    train, val = splits(FILLER)
    assert (train, val) == ({t for t in FILLER if not is_val(t)}, {t for t in FILLER if is_val(t)})
    more_train, more_val = splits([f"added {i}" for i in range(100)] + FILLER[::-1])
    assert train < more_train and val < more_val


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, ids",
    [
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        (" Tesla", [11938]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
        ("🚀", [8582, 248, 222]),
    ],
)
def test_the_tokens_are_gpt2s(tokenizer, text, ids):
    assert tokenizer.encode_ordinary(text) == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.n_vocab == 50257 and tokenizer.eot_token == END


@pytest.mark.parametrize(
    "text, ids", [("Tesla", [11938]), ("", []), ("<|endoftext|>", [1279, 91, 437, 1659, 5239, 91, 29])]
)
def test_a_prompt_is_encoded_as_a_tweet_is(tokenizer, text, ids):
    assert prepare.encode(tokenizer, text) == ids


def test_the_tokenizer_needs_no_network(monkeypatch, tmp_path):
    def refuse(*args, **how):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))  # nothing kept from earlier
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    assert prepare.load_tokenizer().encode("Hello world") == [15496, 995]


def test_the_sample_is_written_as_documented(prepared, tokenizer):
    folder = prepared.folder
    assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
    tweets = lines_of(folder)
    assert len(set(tweets)) == len(tweets) and all(t and t == " ".join(t.split()) for t in tweets)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    for name, part in (
        ("train", [t for t in tweets if not is_val(t)]),
        ("val", [t for t in tweets if is_val(t)]),
    ):
        path = folder / f"{name}.bin"
        assert read_bin(path, tokenizer) == part
        counts = collections.Counter(np.fromfile(path, "<u2").tolist())
        assert counts[END] == len(part) + 1
        assert meta[f"{name}_tweets"] == len(part)
        assert meta[f"{name}_tokens"] * 2 == path.stat().st_size
        assert meta[f"{name}_bytes"] == sum(len(tweet.encode()) + 1 for tweet in part)
        assert meta[f"{name}_distinct_tokens"] == len(counts)
        if name == "train":
            assert meta["train_token_counts"] == {str(token): counts[token] for token in sorted(counts)}
    assert meta["tweets"] == len(tweets) == meta["rows"] - sum(meta["dropped"].values())
    assert {"retweets", "duplicates", "empty"} <= meta["dropped"].keys()
    assert (meta["tokenizer"], meta["leading_space"]) == ("gpt2", True)
    assert [source["name"] for source in meta["sources"]] == ["sample_tweets.csv"]
    assert re.fullmatch("[0-9a-f]{64}", meta["sources"][0]["sha256"])


def test_the_summary_tells_what_was_done(prepared):
    meta = json.loads((prepared.folder / "meta.json").read_text(encoding="utf-8"))
    told = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", prepared.out)}
    names = [
        f"{name}_{what}"
        for name in ("train", "val")
        for what in ("tweets", "tokens", "bytes", "distinct_tokens")
    ]
    assert {meta[name] for name in ["rows", "tweets", *names]} | set(meta["dropped"].values()) <= told
    assert all(reason in prepared.out for reason in meta["dropped"])
    assert prepared.err == ""


def test_the_next_command_that_it_names_reads_what_it_wrote(prepared, monkeypatch, repo):
    words = shlex.split(prepared.out.splitlines()[-1])
    assert words[:3] == ["next", sys.executable, "train.py"]
    monkeypatch.chdir(repo)
    settings = load_settings(train.Settings, words[3:])
    assert settings.data_dir == str(prepared.folder)
    assert settings.out_dir == f"out/{prepared.folder.name}"


def test_a_second_run_writes_the_same_bytes(command, prepared, snapshot, tmp_path):
    flags = ["--input=data/sample_tweets.csv", f"--data_dir={tmp_path}"]
    for _ in range(2):
        assert command("prepare.py", *flags).code == 0
        assert snapshot(tmp_path) == snapshot(prepared.folder)


def test_text_that_looks_like_the_separator_is_text(tweets_of, tmp_path, tokenizer):
    cells = ["<|endoftext|>", "before <|endoftext|> after", *FILLER]
    assert tweets_of(cells) == cells
    found = [t for name in ("train", "val") for t in read_bin(tmp_path / "out" / f"{name}.bin", tokenizer)]
    assert sorted(found) == sorted(cells)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(run, write_csv, tmp_path, encoding):
    rows = [["text"], ["Füße über Ñandú"], *([tweet] for tweet in FILLER)]
    assert run(write_csv(tmp_path / "in.csv", rows, encoding)).code == 0
    assert lines_of(tmp_path / "out")[0] == "Füße über Ñandú"


def test_a_stray_byte_leaves_the_other_characters_alone(run, tmp_path):
    lines = ["Füße 🚀".encode(), "Straße “quoted” … 5 €".encode("cp1252"), "\n".join(FILLER).encode()]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    assert run(tmp_path / "in.txt").code == 0
    assert lines_of(tmp_path / "out")[:2] == ["Füße 🚀", "Straße “quoted” … 5 €"]


@pytest.mark.parametrize(
    "header, flags, column",
    [
        (["id", "text", "x"], (), 1),
        (["id", "Tweet", "x"], (), 1),
        (["x", " FULL_TEXT ", "id"], (), 1),
        (["content", "id", "x"], (), 0),
        (["id", "x", "body"], (), 2),
        (["body", "content", "text"], (), 2),  # in the order of the names, not of the columns
        (["id", "post", "text"], ["--text_column=post"], 1),
        (["id", "Post", "text"], ["--text_column", "POST"], 1),
    ],
)
def test_the_text_column_is_found(run, write_csv, tmp_path, header, flags, column):
    rows = [[f"column {i} of {tweet}" for i in range(3)] for tweet in FILLER]
    assert run(write_csv(tmp_path / "in.csv", [header, *rows]), flags=flags).code == 0
    assert lines_of(tmp_path / "out") == [row[column] for row in rows]


def test_several_files_are_joined_in_order(run, write_csv, tmp_path):
    first = write_csv(tmp_path / "a.csv", [["text"], ["both"], *([t] for t in FILLER[:20])])
    second = write_csv(tmp_path / "b.csv", [["Tweet"], ["both"], *([t] for t in FILLER[20:])])
    done = run(first, second)
    assert lines_of(tmp_path / "out") == ["both", *FILLER]
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert [source["name"] for source in meta["sources"]] == ["a.csv", "b.csv"]
    assert (meta["rows"], meta["dropped"]) == (42, {"duplicates": 1})
    assert "a.csv" in done.out and "b.csv" in done.out


def test_a_separator_at_the_end_of_each_row_does_not_shift_the_columns(run, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text\n" + "".join(f"{i},{tweet},\n" for i, tweet in enumerate(FILLER)))
    assert run(path).code == 0
    assert lines_of(tmp_path / "out") == FILLER


@pytest.mark.parametrize("tail", [", and more", ", and, more", ",, more"])
@pytest.mark.parametrize("ragged", [range(24), [0], [5], [23]])
def test_tweets_that_hold_a_separator_without_quotes_are_not_cut(run, the_error, tmp_path, tail, ragged):
    path = tmp_path / "in.csv"
    rows = [f"{i},{tweet}{tail * (i in ragged)}\n" for i, tweet in enumerate(FILLER)]
    path.write_text("id,text\n" + "".join(rows))
    assert "must be in quotes" in the_error(run(path), "prepare.py")
    assert not (tmp_path / "out" / "train.bin").exists()


def test_what_is_longer_than_a_post_can_be_is_dropped_and_counted(run, write_csv, tmp_path):
    cells = [
        ["text"],
        ["a" * 25_000],
        ["b" * 25_001],
        ["." + " " * 1_000_000],
        *([tweet] for tweet in FILLER),
    ]
    done = run(write_csv(tmp_path / "in.csv", cells))
    assert done.code == 0 and "2 longer than 25,000 characters" in done.out
    assert lines_of(tmp_path / "out") == ["a" * 25_000, *FILLER]


def test_a_line_that_is_longer_than_a_post_is_dropped_whole(run, tmp_path):
    lines = ["word " * 30_000 + "its tail", *FILLER]
    (tmp_path / "in.txt").write_text("\n".join(lines))
    done = run(tmp_path / "in.txt")
    assert done.code == 0 and "1 longer than 25,000 characters" in done.out
    assert lines_of(tmp_path / "out") == FILLER


def test_missing_cells_are_empty_ones(run, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text,is_retweet\n1\n" + "".join(f"{i},{tweet}\n" for i, tweet in enumerate(FILLER)))
    assert run(path).code == 0
    assert lines_of(tmp_path / "out") == FILLER


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, flags, words",
    [
        (None, (), ["no such file", "in.csv"]),
        ("", (), ["in.csv", "empty"]),
        ("\n\n", (), ["in.csv", "empty"]),
        ("text\n", (), ["cleaning left none", "0 rows"]),
        ("id,post,when\n1,a,b\n", (), ["in.csv", "id, post, when", "--text_column"]),
        ("id,text\n1,a\n", ["--text_column=post"], ["in.csv", "'post'", "id, text"]),
        ("text\n@a\nhttps://t.co/x\n", (), ["cleaning left none", "2 rows", "2 empty"]),
        ("text\nalone\n", (), ["too few tweets", "both splits"]),
        ("id,text\n" + "1,a tweet\n" * 9 + '2,"never closed\n', (), ["in.csv", "cannot be read"]),
        (bytes(range(256)) * 20, (), ["in.csv"]),
    ],
    ids=["missing", "empty", "blank", "header only", "no column", "wrong column", "nothing left", "too few",
         "open quote", "not a CSV"],
)  # fmt: skip
def test_what_cannot_be_used_is_told_and_nothing_is_touched(
    run, the_error, snapshot, tmp_path, content, flags, words
):
    out = tmp_path / "out"
    out.mkdir()
    for name in OUTPUTS:
        (out / name).write_text("from before")
    before = snapshot(out)
    if content is not None:
        (tmp_path / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = the_error(run(tmp_path / "in.csv", flags=flags), "prepare.py")
    assert all(word in error for word in words), error
    assert snapshot(out) == before


# --- without --input ------------------------------------------------------------------------------


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return buffer.getvalue()


CSV = "id,text\n" + "".join(f"{i},{tweet}\n" for i, tweet in enumerate(FILLER))
FILES = {
    "/tweets.zip": zipped(readme__txt="hello", elon_musk_tweets__csv=CSV),
    "/garbage": b"<html>Please log in</html>" * 100,
    "/cut-off.zip": zipped(elon_musk_tweets__csv=CSV)[:-30],
    "/no-csv.zip": zipped(readme__txt="hello"),
    "/no-rows.zip": zipped(elon_musk_tweets__csv="id,text\n"),
    "/no-column.zip": zipped(elon_musk_tweets__csv="id,when\n1,2\n"),
}


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; `.url` is its address, `.asked` the paths that were asked for."""
    over, asked = threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", "/tweets.zip")
                self.end_headers()
            elif self.path in FILES:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(FILES[self.path])
            elif self.path == "/hangs":
                over.wait(20)
            elif self.path == "/drips":  # a byte now and then, so that no socket's time-out strikes
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        if over.wait(0.2):
                            break
                        self.wfile.write(b"x")
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.url, server.asked = f"http://127.0.0.1:{server.server_port}", asked
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_download_follows_redirects_and_is_kept(server, command, tmp_path):
    flags = [f"--data_dir={tmp_path}", f"--download_url={server.url}/redirect"]
    for _ in range(2):
        assert command("prepare.py", *flags).code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["elon_musk_tweets.csv", *OUTPUTS]
        assert (tmp_path / "elon_musk_tweets.csv").read_text() == CSV
        assert lines_of(tmp_path) == FILLER
    assert server.asked == ["/redirect", "/tweets.zip"]  # the second run used the file that was kept


def check_fallback(folder, err):
    """The sample was used, one line says what to do for the real tweets, and no part of a file is left."""
    assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
    meta = json.loads((folder / "meta.json").read_text())
    assert [source["name"] for source in meta["sources"]] == ["sample_tweets.csv"]
    told = [line for line in err.splitlines() if not line.startswith("fetching ")]
    assert len(told) == 1
    for word in ("sample_tweets.csv", "elon_musk_tweets.csv", prepare.KAGGLE_PAGE, str(folder)):
        assert word in told[0]
    return told[0]


@pytest.mark.parametrize(
    "path, why",
    [
        ("/gone", "404"),
        ("/garbage", "not a zip"),
        ("/cut-off.zip", "not a zip"),
        ("/no-csv.zip", "CSV"),
        ("/no-rows.zip", "no tweets"),
        ("/no-column.zip", "no column"),
        (None, "refused"),  # nobody listens
        ("", "no download was asked for"),
    ],
)
def test_a_download_that_fails_falls_back_to_the_sample(server, command, tmp_path, path, why):
    url = "http://127.0.0.1:9" if path is None else path and server.url + path
    done = command("prepare.py", f"--data_dir={tmp_path}", f"--download_url={url}")
    assert done.code == 0
    told = check_fallback(tmp_path, done.err)
    assert why in told.split("so this uses")[0], told
    assert "index out of range" not in told  # plain words, not a programmer's


@pytest.mark.parametrize("path", ["/hangs", "/drips"])
def test_a_server_that_is_too_slow_is_given_up(server, capsys, monkeypatch, tmp_path, path):
    assert prepare.DOWNLOAD_SECONDS <= 10
    began = time.monotonic()
    monkeypatch.setattr(prepare, "DOWNLOAD_SECONDS", 1)
    prepare.main(prepare.Settings(data_dir=str(tmp_path), download_url=server.url + path))
    assert re.search("1 s|timed out", check_fallback(tmp_path, capsys.readouterr().err))
    assert time.monotonic() - began < 10


# --- the sample that comes with the program -------------------------------------------------------


def test_the_sample_has_what_real_exports_have_and_is_labelled(repo):
    with open(repo / "data" / "sample_tweets.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "id,user_name,user_location,user_description,user_created,user_followers,user_friends,user_favourites,"
        "user_verified,date,text,hashtags,source,retweets,favorites,is_retweet"
    )
    assert all(None not in row and None not in row.values() for row in rows)
    assert {row["user_name"] for row in rows} == {"Sample Account"}
    assert all("invented" in row["user_description"].lower() for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    texts = [row["text"] for row in rows]
    assert len({prepare.clean(text) for text in texts} - {""}) >= 300
    for pattern in (r"^@\w", r"https://t\.co/", "&amp;", "[\U0001f300-\U0001faff]", '"', ",", "\n", "…"):
        assert any(re.search(pattern, text) for text in texts), pattern
    assert {row["is_retweet"] for row in rows} == {"True", "False"}
    assert len(set(texts)) < len(texts)


# --- the exports that people have -----------------------------------------------------------------


def archive(tweets, number=0):
    """What X's archive holds as data/tweets.js."""
    items = [{"tweet": {"id": str(n), "full_text": tweet}} for n, tweet in enumerate(tweets)]
    return f"window.YTD.tweets.part{number} = {json.dumps(items, indent=2)}"


def table(separator, line_end="\n"):
    return line_end.join(f'{n}{separator}"{tweet}"' for n, tweet in [("id", "text"), *enumerate(FILLER)])


def zipped(**files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return packed.getvalue()


EXPORTS = {
    "comma.csv": table(",").encode(),
    "semicolon.csv": table(";").encode(),
    "tab.tsv": table("\t", "\r\n").encode(),
    "mixed.csv": table(",").replace("\n", "\r\n", 7).encode(),
    "packed.csv.gz": gzip.compress(table(";").encode()),
    "packed.zip": zipped(README_md=b"no tweets", tweets_csv=table(",")),
    "lines.txt": "\n".join(FILLER).encode(),
    "lines.txt.gz": gzip.compress("\r\n".join(FILLER).encode()),
    "tweets.js": archive(FILLER).encode(),
    "tweet.js": archive(FILLER).replace("tweets.part", "tweet.part").encode(),
    "twitter.zip": zipped(
        data__account_js="window.YTD.account.part0 = []", data__tweets_js=archive(FILLER[:9]),
        **{"data__tweets-part1_js": archive(FILLER[9:], 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_formats(run, tmp_path, name):
    (tmp_path / name).write_bytes(EXPORTS[name])
    done = run(tmp_path / name)
    assert done.code == 0, done.err
    found = lines_of(tmp_path / "out")
    assert sorted(found) == sorted(FILLER)


def test_an_archive_holds_retweets_and_escapes(run, tmp_path):
    tweets = ["RT @nasa: We landed", "Rockets &amp; cars", "@a @b yes, 42 https://t.co/x", *FILLER]
    (tmp_path / "tweets.js").write_text(archive(tweets), encoding="utf-8")
    done = run(tmp_path / "tweets.js")
    assert "1 retweets" in done.out
    found = lines_of(tmp_path / "out")
    assert found == ["Rockets & cars", "yes, 42", *FILLER]


def test_folders_and_patterns_are_read_in_order_and_each_tweet_once(run, write_csv, tmp_path):
    (tmp_path / "in").mkdir()
    for name, part in (("b", FILLER[:12]), ("a", FILLER[8:])):
        write_csv(tmp_path / "in" / f"{name}.csv", [["text"], *([tweet] for tweet in part)])
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG")
    outputs = []
    for flag in (tmp_path / "in", tmp_path / "in" / "*.csv"):
        done = run(flag)
        assert done.code == 0, done.err
        assert "4 duplicates" in done.out
        outputs.append(lines_of(tmp_path / "out"))
    assert outputs == [[*FILLER[8:], *FILLER[:8]]] * 2
    download = tmp_path / "download" / "data"
    download.mkdir(parents=True)
    (download / "tweets.js").write_text(archive(FILLER))
    (download / "account.js").write_text("window.YTD.account.part0 = [{}]")
    assert run(download.parent).code == 0


def test_an_unpacked_archive_is_read_with_its_parts_and_what_lies_beside_it(run, write_csv, tmp_path):
    home = tmp_path / "twitter-2026" / "data"
    home.mkdir(parents=True)
    (home / "tweets.js").write_text(archive(FILLER[:9]))
    (home / "tweets-part1.js").write_text(archive(FILLER[9:], 1))
    (home / "README.txt").write_text("What is in this archive")
    write_csv(tmp_path / "mine.csv", [["text"], ["one of another export"]])
    outputs = []
    for given in (home / "tweets.js", home.parent, tmp_path):
        done = run(given)
        assert done.code == 0, done.err
        outputs.append(sorted(lines_of(tmp_path / "out")))
    assert outputs == [sorted(FILLER), sorted(FILLER), sorted([*FILLER, "one of another export"])]


def test_a_folder_is_read_without_hidden_files_and_what_prepare_wrote(run, write_csv, tmp_path):
    for place in ("in/mine.csv", "in/.venv/lib/other.csv", "in/data/processed.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write_csv(tmp_path / place, [["text"], [f"from {place}"], *([tweet] for tweet in FILLER)])
    assert "of mine.csv\n" in run(tmp_path / "in").out


def test_one_author(run, write_csv, the_error, tmp_path):
    rows = [[tweet, " @NASA" if n % 3 else "esa"] for n, tweet in enumerate(FILLER * 2)]
    path = write_csv(tmp_path / "in.csv", [["text", "User_Name"], *rows])
    assert run(path, flags=["--user=nasa"]).code == 0
    found = lines_of(tmp_path / "out")
    assert found == list(dict.fromkeys(tweet for tweet, author in rows if author != "esa"))
    assert "no row by --user=nobody?" in the_error(run(path, flags=["--user=nobody"]), "prepare.py")
    lone = write_csv(tmp_path / "lone.csv", [["text"], *([tweet] for tweet in FILLER)])
    assert "it has text" in the_error(run(lone, flags=["--user=nasa"]), "prepare.py")
    (tmp_path / "lines.txt").write_text("\n".join(FILLER))
    assert "--user" in the_error(run(tmp_path / "lines.txt", flags=["--user=nasa"]), "prepare.py")


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--mentions=reply", "see @c and a@b.c"),
        ("--mentions=keep", "@a @b see @c and a@b.c"),
        ("--mentions=strip", "see and a@b.c"),
        ("--urls=keep", "see @c and a@b.c https://t.co/x"),
        ("--min_chars=17", None),
    ],
)
def test_cleaning_switches(run, write_csv, tmp_path, flag, expected):
    text = "@a @b see @c and a@b.c https://t.co/x"
    longer = [[f"{tweet}, and what is more, it is long"] for tweet in FILLER]
    done = run(write_csv(tmp_path / "in.csv", [["text"], [text], *longer]), flags=[flag])
    assert done.code == 0, done.err
    found = lines_of(tmp_path / "out")
    assert found == ([expected] if expected else []) + [tweet for [tweet] in longer]
    assert ("1 shorter than 17 characters" in done.out) == (expected is None)
    name, value = flag.removeprefix("--").split("=")
    assert str(json.loads((tmp_path / "out/meta.json").read_text())[name]) == value


def test_a_dry_run_shows_ten_tweets_and_writes_nothing(run, write_csv, tmp_path):
    rows = [["@a Hi &amp; bye\x1b[2J"], ["@b"], ["RT @c: d"], *([tweet] for tweet in FILLER)]
    done = run(write_csv(tmp_path / "in.csv", [["text"], *rows]), flags=["--dry_run"])
    assert done.code == 0, done.err
    assert done.out.startswith("before  @a Hi &amp; bye\\x1b[2J\nafter   Hi & bye\\x1b[2J\n")
    assert "after   (dropped: empty)" in done.out and "after   (dropped: retweets)" in done.out
    assert done.out.count("before") == done.out.count("after") == 10
    assert not (tmp_path / "out").exists()


HARM = {
    "a row of thousands of cells": ("wide.csv", b",".join([b"text"] * 3000), "3,000 cells"),
    "half a gz": ("in.csv.gz", EXPORTS["packed.csv.gz"][:-20], "cannot be unpacked"),
    "no gz": ("in.csv.gz", b"text\nhello", "cannot be unpacked"),
    "half a zip": ("in.zip", EXPORTS["packed.zip"][:-30], "cannot be unpacked"),
    "a spreadsheet": ("in.xlsx", zipped(workbook_xml="<x>"), "save it as a CSV"),
    "a zip of nothing": ("in.zip", zipped(a_png=b"x"), "no CSV"),
    "a bomb in a gz": ("in.csv.gz", gzip.compress(b"a" * 120_000_000, 9), "unpacks to far more"),
    "a bomb in a zip": ("in.zip", zipped(a_csv=b"text\n" + b"a" * 120_000_000), "unpacks to far more"),
    "half a tweets.js": ("tweets.js", EXPORTS["tweets.js"][:-40], "tweets.js"),
    "another js": ("account.js", b"window.YTD.account.part0 = [1]", "tweets.js"),
    "an empty folder": ("folder", None, "holds no tweets"),
    "a pattern for nothing": ("gone-*.csv", None, "pattern"),
}


@pytest.mark.parametrize("harm", HARM)
def test_damaged_exports_are_refused_in_one_line(run, the_error, tmp_path, harm):
    name, content, told = HARM[harm]
    if content:
        (tmp_path / name).write_bytes(content)
    elif "*" not in name:
        (tmp_path / name).mkdir()
    assert told in the_error(run(tmp_path / name), "prepare.py")
    assert not any((tmp_path / "out").glob("*"))


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.lists(st.text(min_size=1), min_size=1))
def test_tweets_encoded_together_have_the_tokens_of_each_alone(tokenizer, texts):
    tweets = [tweet for text in texts if (tweet := prepare.clean(text))]
    together = prepare.Split(None, tokenizer).encode(tweets).tolist() if tweets else []
    assert together == [i for tweet in tweets for i in (50256, *prepare.encode(tokenizer, tweet))]
