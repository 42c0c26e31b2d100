"""Fuzzing prepare.py: whatever a file holds, it is either prepared faithfully or refused in one line.

python -m pytest tests/test_fuzz.py            # some inputs
python -m pytest tests/test_fuzz.py -m long -s # 2,000 of each kind
"""

import contextlib
import csv
import gzip
import io
import json
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prepare
from config import UserError

TOKENIZER = prepare.load_tokenizer()
SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}

FILLER = [f"tweet number {n}" for n in range(30)]  # enough for both splits
odd = st.sampled_from([
    "", "NA", "nan", "1e5", "2023-01-01", "<|endoftext|>", "&amp;&#0;&#xD800;", "@a @b", "…", "https://t.co/x",
    "\x00", "\r", "\n", "\r\n", '"', '""', ",", ";", "\t", "\ufeff", "\x1b[2J", "\x85\u2028", "RT @x",
    "\u202e\u05d0\u0628", "\U0001f469\u200d\U0001f467\U0001f3fd",
])  # fmt: skip
texts = st.lists(st.one_of(odd, st.text(max_size=40)), max_size=6).map("".join)
rows = st.lists(st.lists(texts, max_size=4), max_size=30)


@st.composite
def tables(draw):
    """CSV files: well written, with ragged rows, or with the quotes left out."""
    out = io.StringIO()
    header = draw(st.sampled_from([["text"], ["id", "Tweet", "is_retweet"], ["text", "text"], ["a", "b"]]))
    how = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None]))
    lines = [header, *draw(rows), *([tweet] * len(header) for tweet in FILLER)]
    if how is None:
        out.write("\n".join(",".join(line) for line in lines))
    else:
        csv.writer(out, quoting=how, escapechar="\\").writerows(lines)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    return "in.csv", out.getvalue().encode(encoding, "surrogatepass")


@st.composite
def archives(draw):
    """Files like the tweets.js of X's archive, with anything where a tweet should be, whole or cut short."""
    junk = st.recursive(st.none() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3))
    tweet = texts.map(lambda text: {"tweet": {"full_text": text, "id": "1"}})
    likely = [{"tweet": {"full_text": text}} for text in FILLER]
    items = [*draw(st.lists(tweet, max_size=20)), *draw(st.lists(junk, max_size=1)), *likely]
    content = draw(st.sampled_from(["window.YTD.tweets.part0 = ", "", "x = ["])) + json.dumps(items)
    content = content.encode()
    return "tweets.js", content[: draw(st.sampled_from([len(content)] * 3 + [len(content) // 2, 10]))]


@st.composite
def packed(draw):
    """A table in a gzip or zip file, with some bytes changed or cut off."""
    _, content = draw(tables())
    if draw(st.booleans()):
        name, content = "in.csv.gz", gzip.compress(content)
    else:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(draw(st.sampled_from(["a.csv", "data/a.CSV", "a.png"])), content)
        name, content = "in.zip", archive.getvalue()
    content = bytearray(content)
    for place, value in draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=2)):
        content[place % len(content)] = value
    return name, bytes(content[: draw(st.sampled_from([len(content)] * 3 + [len(content) // 2]))])


KINDS = {
    "tables": tables(),
    "bytes": st.tuples(
        st.sampled_from(["in.csv", "in.csv.gz", "in.zip", "tweets.js"]), st.binary(max_size=400)
    ),
    "lines": st.tuples(st.just("in.txt"), st.lists(texts).map(lambda t: "\n".join([*t, *FILLER]).encode())),
    "archives": archives(),
    "packed": packed(),
}


def check(name, content):
    """Prepare a file `name` of `content`; what is accepted must round-trip. Returns whether it was."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "load_tokenizer", lambda: TOKENIZER)
        folder = pathlib.Path(folder)
        (folder / name).write_bytes(content)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                prepare.main(prepare.Settings(input=(str(folder / name),), data_dir=str(folder / "data")))
        except UserError as error:
            assert str(error)
            assert not any((folder / "data").glob("*"))
            return False
        tweets = (folder / "data/processed.txt").read_text(encoding="utf-8").split("\n")[:-1]
        found = {name: decoded(folder / f"data/{name}.bin") for name in ("train", "val")}
        assert found["train"] == [tweet for tweet in tweets if not prepare.held_out(tweet)]
        assert found["val"] == [tweet for tweet in tweets if prepare.held_out(tweet)]
        assert json.loads((folder / "data/meta.json").read_text(encoding="utf-8"))["tweets"] == len(tweets)
        return True


def decoded(path):
    ids = np.fromfile(path, "<u2")
    assert ids[0] == ids[-1] == prepare.END_OF_TEXT
    parts = np.split(ids, np.flatnonzero(ids == prepare.END_OF_TEXT))[1:-1]
    return [TOKENIZER.decode(part[1:].tolist())[1:] for part in parts]


@pytest.mark.parametrize("inputs", [50, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_file_is_prepared_or_refused(kind, inputs):
    outcomes = []

    @settings(max_examples=inputs, **SETTINGS)
    @given(KINDS[kind])
    def fuzz(file):
        outcomes.append(check(*file))

    fuzz()
    print(f"{kind}: {len(outcomes)} inputs, {sum(outcomes)} accepted, no traceback")


@pytest.mark.parametrize(
    "cell", ["a" * 10_000_000, " " * 10_000_000, "@a" * 5_000_000, "…" * 24_000, " \u2003" * 12_000]
)
def test_huge_cells(cell):
    words = "\n".join(f"tweet number {n}" for n in range(50))
    assert check("in.csv", f'text\n{words}\n"{cell}"\n'.encode())
