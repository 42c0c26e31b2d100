"""From CSVs to token files: cleaning, splitting, encoding, what is refused, and the download."""

import collections
import contextlib
import csv
import http.server
import io
import json
import re
import shlex
import socket
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest

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
    assert words[:3] == ["next", "python", "train.py"]
    monkeypatch.chdir(repo)
    settings = load_settings(train.Settings, words[3:], example="")
    assert settings.data_dir == str(prepared.folder)


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_encodings(run, write_csv, tmp_path, encoding):
    rows = [["text"], ["Füße über Ñandú"], *([tweet] for tweet in FILLER)]
    assert run(write_csv(tmp_path / "in.csv", rows, encoding)).code == 0
    assert lines_of(tmp_path / "out")[0] == "Füße über Ñandú"


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


@pytest.mark.parametrize("tail", [",", ",x,y"])
def test_cells_beyond_the_header_do_not_shift_the_columns(run, tmp_path, tail):
    path = tmp_path / "in.csv"
    path.write_text("id,text\n" + "".join(f"{i},{tweet}{tail}\n" for i, tweet in enumerate(FILLER)))
    assert run(path).code == 0
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
        ("text\n", (), ["nothing is left", "0 rows"]),
        ("id,post,when\n1,a,b\n", (), ["in.csv", "id, post, when", "--text_column"]),
        ("id,text\n1,a\n", ["--text_column=post"], ["in.csv", "'post'", "id, text"]),
        ("text\n@a\nhttps://t.co/x\n", (), ["nothing is left", "2 rows", "2 empty"]),
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
    assert "1 s" in check_fallback(tmp_path, capsys.readouterr().err)
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
