"""Fuzzing prepare.py: whatever a file holds, it is either prepared faithfully or refused in one line.

python -m pytest tests/test_fuzz.py -m long --hypothesis-show-statistics
"""

import csv
import gzip
import io
import json
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
import tiktoken.load
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import prepare

pytestmark = pytest.mark.long

FILLER = [f"tweet number {n}" for n in range(30)]  # enough for both splits
odd = st.sampled_from([
    "", "NA", "1e5", "2023-01-01", "<|endoftext|>", "&amp;&#0;&#xD800;", "@a @b", "…", "https://t.co/x",
    "RT @x", "\x00", "\r", "\n", "\r\n", '"', '""', ",", ";", "\t", "\ufeff", "\x1b[2J", "\x85\u2028",
    "b'\\xf0'", '"\\ud83d"', "\\n\\'", "<e9><U+D83D>", "â€™Ã©", "<p>", "<a href=x>", "“@x: ",
    "RT: “@x", "bit.ly/a", "https:/", "\u202e\u05d0\u0628", "\U0001f469\u200d\U0001f467\U0001f3fd",
])  # fmt: skip
texts = st.lists(odd | st.text(max_size=40), max_size=6).map("".join)
length = st.sampled_from([None, None, 10, 500])  # at which a file is cut short


@st.composite
def tables(draw):
    """CSV files: well written, with ragged rows, or with the quotes left out."""
    names = st.sampled_from(["text", "id,Tweet,is_retweet", "text,full_text", "type,user,text", "a,b"])
    header, out = draw(names).split(","), io.StringIO()
    cells = st.lists(texts, min_size=draw(st.sampled_from([0, len(header)])), max_size=len(header))
    lines = [header, *draw(st.lists(cells, max_size=30)), *([tweet] * len(header) for tweet in FILLER)]
    csv.writer(out, draw(st.sampled_from(["excel", "excel-tab", "unix"]))).writerows(lines)
    written = draw(st.sampled_from([out.getvalue(), "\n".join(map(",".join, lines))]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return draw(st.sampled_from(["in.csv", "in.txt"])), written.encode(encoding, "surrogatepass")


@st.composite
def objects(draw):
    """Objects or anything else, in a list or a line each, as JSON or Python prints, whole or cut short."""
    keys = st.sampled_from(["text", "full_text", "tweet", "user", "data", ""])
    cells = st.none() | st.integers() | texts
    junk = st.recursive(cells, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner))
    items = [{"text": text, "tweet": {"full_text": text}} for text in draw(st.lists(texts)) + FILLER]
    items, write = draw(st.lists(junk, max_size=5)) + items, draw(st.sampled_from([json.dumps, repr]))
    content = write(items) if draw(st.booleans()) else "\n".join(map(write, items))
    content = draw(st.sampled_from(["", "", "window.YTD.tweets.part0 = ", "x = ["])) + content
    name = draw(st.sampled_from(["tweets.js", "in.json", "in.jsonl", "in.txt", "in.csv"]))
    return name, content.encode("utf-8", "replace")[: draw(length)]


@st.composite
def packed(draw):
    """A table in a gzip or zip file, with some bytes changed or cut off."""
    (_, content), archive = draw(tables()), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(draw(st.sampled_from(["a.csv", "data/a.CSV", "a.png"])), content)
    files = {"in.csv.gz": gzip.compress(content), "in.zip": archive.getvalue()}
    name, content = draw(st.sampled_from([*files.items()]))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=1)), max_size=2)):
        place %= len(content)
        content = content[:place] + value + content[place + 1 :]
    return name, content[: draw(length)]


NAMES = st.sampled_from(["in.csv", "in.gz", "in.zip", "tweets.js"])
KINDS = {"tables": tables(), "objects": objects(), "packed": packed()}
KINDS["bytes"] = st.tuples(NAMES, st.binary(max_size=400))


@pytest.fixture(scope="module")
def is_prepared(command, the_error):
    """Whether prepare.py accepts a file `name` of `content`; what it accepts must round-trip."""

    def is_prepared(name, content):
        with tempfile.TemporaryDirectory() as folder:
            path, data = pathlib.Path(folder, name), pathlib.Path(folder, "data")
            path.write_bytes(content)
            done = command("prepare.py", path, f"--data_dir={data}")
            if done.code:
                assert the_error(done, "prepare.py") and not any(data.glob("*"))
                return False
            tweets = (data / "processed.txt").read_text(encoding="utf-8").split("\n")[:-1]
            for split, side in (("train", False), ("val", True)):
                part = [f" {tweet}<|endoftext|>" for tweet in tweets if prepare.held_out(tweet) is side]
                ids = np.fromfile(data / f"{split}.bin", "<u2").tolist()
                assert tokenizer.decode(ids) == "".join(["<|endoftext|>", *part])
            assert json.loads((data / "meta.json").read_text(encoding="utf-8"))["tweets"] == len(tweets)
            return True

    tokenizer = prepare.load_tokenizer()
    with pytest.MonkeyPatch.context() as patch:  # one for all runs, which take milliseconds without it
        patch.setattr(tiktoken, "Encoding", lambda *words, **how: tokenizer)
        patch.setattr(tiktoken.load, "data_gym_to_mergeable_bpe_ranks", lambda *words: {})
        yield is_prepared


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_any_file_is_prepared_or_refused(is_prepared, kind, data):
    event("accepted" if is_prepared(*data.draw(KINDS[kind])) else "refused")


HUGE = [
    ("a", 10**7), (" ", 10**7), ("@a", 12_000), ("…", 24_000), ("http://", 3_000), ("b'", 12_000),
    ("<p ", 8_000), ("<a b=", 5_000), ("“@a:", 6_000), ("RT ", 8_000), ("(", 24_000), ("a.", 12_000),
    ("\\x", 8_000), ("<e9>", 6_000), ("Ã", 24_000), ("@a - ", 5_000), ("Replying to @a ", 1_600),
]  # fmt: skip


@pytest.mark.parametrize(("text", "times"), HUGE)
def test_huge_cells_take_no_time(is_prepared, text, times):
    assert is_prepared("in.csv", "\n".join(["text", *FILLER, f'"{text * times}"']).encode())
