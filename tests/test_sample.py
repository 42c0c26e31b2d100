"""Sampling: tweets that begin as asked, the same for the same seed, kept with the settings that made them."""

import json
import re
import shutil

import matplotlib.image
import pytest
import torch

import sample as sampling
from prepare import held_out

SHORT = ["--num_samples=3", "--max_new_tokens=6"]


@pytest.fixture
def out(trained, tmp_path):
    """A folder with a trained model."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(trained.folder / "best.pt", folder)
    return folder


@pytest.fixture
def sample(command, out):
    """sample.py with three short tweets to write."""

    def run(*flags, **how):
        return command("sample.py", f"--out_dir={out}", *SHORT, *flags, **how)

    return run


def tweets_in(text):
    """The tweets that sample.py printed, without what it says of their novelty."""
    lines = [line for line in text.splitlines() if "word for word in:" not in line]
    return [re.sub(r"^ *\d+% new  ", "", line) for line in lines]


def test_what_a_user_types(shell, out, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("\ufeffUnsere Straße\n", encoding="utf-8")
    for flags, start in ((["--start", "Tesla"], "Tesla"), ([f"--start=FILE:{prompt}"], "Unsere Straße")):
        done = shell("sample.py", *flags, *SHORT, f"--out_dir={out}")
        assert (done.code, done.err) == (0, "")
        tweets = tweets_in(done.out)
        assert len(tweets) == 3 and all(tweet.startswith(start) for tweet in tweets)


@pytest.mark.parametrize(
    "flags, start",
    [
        (["--start", "Tesla"], "Tesla"),
        (["--start=Tesla is"], "Tesla is"),
        (["--start="], ""),
        ([], ""),
        (["--start=  two\n lines "], "two lines"),
        (["--start=<|endoftext|> as text"], "<|endoftext|> as text"),
        (["--start=Füße 🚀 \u4e16\u754c"], "Füße 🚀 \u4e16\u754c"),
        (["--start=zyzzyva qwertz"], "zyzzyva qwertz"),  # tokens that no training tweet holds
        (["--start=" + "many words " * 20], " ".join(["many words"] * 20)),  # longer than the block
        (["--start=x", "--top_k=0", "--temperature=3"], "x"),
        (["--start=x", "--top_k=1000000"], "x"),
    ],
    ids=lambda value: repr(value) if isinstance(value, list) else "",
)
def test_tweets_begin_with_the_prompt(sample, flags, start):
    done = sample(*flags)
    assert done.code == 0, done.err
    tweets = tweets_in(done.out)
    assert len(tweets) == 3
    assert all(tweet.startswith(start) and tweet == tweet.strip() for tweet in tweets)
    assert "Traceback" not in done.err


def test_the_same_seed_gives_the_same_tweets(sample):
    flags = ["--start=The", "--temperature=2", "--top_k=0"]
    first = sample(*flags, "--seed=1").out
    assert sample(*flags, "--seed=1").out == first
    assert sample(*flags, "--seed=99").out != first
    assert len(set(tweets_in(first))) == 3
    assert tweets_in(sample(*flags, "--seed=1", "--num_samples=1").out) == tweets_in(first)[:1]


def test_greedy_tweets_are_all_the_same(sample):
    assert len(set(tweets_in(sample("--start=The", "--temperature=0").out))) == 1


def test_max_new_tokens_bounds_the_tweet(sample):
    for most in (1, 4):
        for tweet in tweets_in(sample("--start=The", f"--max_new_tokens={most}", "--temperature=2").out):
            assert len(tweet.removeprefix("The")) <= most * 128  # the longest token has 128 characters
    assert sample("--start=The", "--max_new_tokens=1").out != sample("--start=The", "--max_new_tokens=9").out


def test_samples_txt_collects_the_tweets_with_their_settings(sample, out):
    (out / "samples.txt").write_text("from earlier\n\n", encoding="utf-8")
    first = sample("--start=Füße 🚀", "--seed=7", "--temperature=0.5").out
    second = sample("--top_k=3").out
    text = (out / "samples.txt").read_bytes().decode("utf-8")
    assert text.startswith("from earlier\n")
    parts = re.split(r"^#", text, flags=re.MULTILINE)[1:]
    assert len(parts) == 2
    for part, printed, settings in (
        (parts[0], first, ["Füße 🚀", "seed=7", "temperature=0.5", "max_new_tokens=6"]),
        (parts[1], second, ["top_k=3", "seed=1337", "temperature=0.8"]),
    ):
        header, *lines = part.splitlines()
        assert all(setting in header for setting in settings), header
        assert all(tweet in "\n".join(lines) for tweet in tweets_in(printed))


def test_prompts_can_be_typed_a_line_each(sample):
    done = sample("--interactive", stdin="Tesla\nThe moon\n")
    tweets = tweets_in(done.out)
    assert [tweet.startswith("Tesla") for tweet in tweets] == [True] * 3 + [False] * 3
    assert all(tweet.startswith("The moon") for tweet in tweets[3:])


def test_the_same_prompt_gives_others_the_second_time(sample):
    done = sample("--interactive", "--temperature=2", stdin="Tesla\nTesla\n")
    assert len(set(tweets_in(done.out))) == 6


def test_a_prompt_longer_than_the_window_is_told(sample):
    done = sample("--start=" + "many words " * 20)
    assert "the prompt has 40 tokens; the model reads only the last 8" in done.err


def test_the_attention_can_be_drawn(sample, out):
    assert sample("--start=Tesla is 🚀", "--attention").code == 0
    height, width, _ = matplotlib.image.imread(out / "attention.png").shape
    assert height > 100 and width > 100


def test_tweets_are_shown_where_the_terminal_knows_no_emoji(shell, out):
    done = shell(
        "sample.py", "--start=Hello 🚀", *SHORT, f"--out_dir={out}", env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.code == 0, done.err
    assert done.out.count("Hello") == 3
    assert "Hello 🚀" in (out / "samples.txt").read_text(encoding="utf-8")


def test_samples_txt_that_another_program_saved_is_kept(sample, out):
    (out / "samples.txt").write_bytes("Füße\n".encode("latin-1"))
    assert sample("--start=Tesla").code == 0
    assert (out / "samples.txt").read_bytes().startswith("Füße\n".encode("latin-1"))


# --- what is refused ------------------------------------------------------------------------------


def test_a_file_where_the_folder_should_be_is_told(command, out, the_error):
    error = the_error(command("sample.py", f"--out_dir={out / 'best.pt'}"), "sample.py")
    assert "cannot be read" in error and "damaged" not in error


def test_a_missing_checkpoint_names_the_next_command(command, the_error, tmp_path):
    error = the_error(command("sample.py", f"--out_dir={tmp_path}"), "sample.py")
    assert "best.pt" in error and "train.py" in error


@pytest.mark.parametrize("content", [b"", b"hello world\n", None], ids=["empty", "text", "cut off"])
def test_a_damaged_checkpoint_is_told(sample, the_error, out, content):
    whole = (out / "best.pt").read_bytes()
    (out / "best.pt").write_bytes(whole[:1000] if content is None else content)
    assert "best.pt" in the_error(sample(), "sample.py")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--start=FILE:no/such/prompt.txt"], ["start", "no/such/prompt.txt"]),
        (["--start=FILE:data"], ["start", "data"]),
        (["--start=" + "x" * 30_000], ["start", "30,000"]),
        (["--num_samples=0"], ["num_samples", "at least 1"]),
        (["--max_new_tokens=0"], ["max_new_tokens", "at least 1"]),
        (["--temperature=-1"], ["temperature", "at least 0"]),
        (["--temperature=nan"], ["temperature", "at least 0"]),
        (["--device=nonsense"], ["device", "'nonsense'"]),
        (["--seed=1000000000000000000000000"], ["seed"]),
        (["--strat=Tesla"], ["'strat'", "'start'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_settings_that_do_not_fit_are_told(sample, the_error, out, flags, words):
    error = the_error(sample(*flags), "sample.py")
    assert all(word in error for word in words), error
    assert [path.name for path in out.iterdir()] == ["best.pt"]


def test_a_prompt_that_is_no_text_is_told(sample, the_error, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe\x00")
    assert "prompt.txt" in the_error(sample(f"--start=FILE:{tmp_path / 'prompt.txt'}"), "sample.py")


def test_sampling_needs_nothing_but_the_checkpoint(command, out, trained, prepared, tmp_path):
    """best.pt is all that sampling needs: without the tweets only their novelty goes untold."""
    state = torch.load(out / "best.pt", weights_only=True)
    moved = json.loads(json.dumps(state["notes"]).replace(str(prepared.folder), str(tmp_path / "gone")))
    torch.save(state | {"notes": moved}, out / "best.pt")
    done = command("sample.py", f"--out_dir={out}", "--start=Tesla", *SHORT)
    assert done.code == 0, done.err
    assert [tweet.startswith("Tesla") for tweet in tweets_in(done.out)] == [True] * 3


# --- novelty --------------------------------------------------------------------------------------

KNOWN = ["The quick brown fox jumps over it", "So true!", "🚀", "It's a lazy, lazy dog"]


@pytest.mark.parametrize(
    "text, novelty, source",
    [
        ("the QUICK brown fox", 0.0, KNOWN[0]),
        ("Brown fox, jumps: over", 0.0, KNOWN[0]),
        ("quick brown fox jumps high", 0.5, None),
        ("jumps over it so true", 1.0, None),  # no sequence reaches from one tweet into the next
        ("fox jumps over it so true", 2 / 3, None),
        ("so", 0.0, KNOWN[1]),
        ("true so", 1.0, None),
        ("lazy lazy dog", 0.0, KNOWN[3]),
        ("lazy dog lazy", 1.0, None),
        ("🚀🚀", 1.0, None),
        ("", 1.0, None),
    ],
)
def test_novelty_is_the_share_of_four_word_sequences_that_are_new(text, novelty, source):
    assert sampling.TrainingTweets(KNOWN).novelty(text) == (pytest.approx(novelty), source)


def test_novelty_where_nothing_is_known():
    assert sampling.TrainingTweets([]).novelty("one two three four five") == (1.0, None)


def test_held_out_tweets_do_not_count_as_known(prepared):
    tweets = (prepared.folder / "processed.txt").read_text(encoding="utf-8").splitlines()
    tweets = [tweet for tweet in tweets if len(sampling.words(tweet)) > 7]
    known = sampling.TrainingTweets.read(prepared.folder / "processed.txt")
    for tweet in tweets:
        assert (known.novelty(tweet)[0] == 0) >= (not held_out(tweet))
    assert any(known.novelty(tweet)[0] > 0.5 for tweet in tweets)


def test_tweets_that_are_not_new_are_drawn_again_and_then_given_up(sample, monkeypatch):
    copied = sample("--start=Tesla", "--temperature=0", "--max_new_tokens=1", "--min_novelty=1")
    assert copied.code == 0
    kept = tweets_in(copied.out)
    if len(kept) < 3:
        assert "less than 100% new" in copied.err and f"gave up on {3 - len(kept)} of 3 tweets" in copied.err
    assert all("100% new" in line for line in copied.out.splitlines())
    free = sample("--min_novelty=0.5")
    assert free.code == 0
    shares = [int(re.match(r" *(\d+)% new", line)[1]) for line in free.out.splitlines() if "% new" in line]
    assert shares and min(shares) >= 50


def test_attention_is_drawn_also_where_no_tweet_is_left(sample):
    done = sample(
        "--temperature=0", "--num_samples=1", "--max_new_tokens=1", "--min_novelty=1", "--attention"
    )
    assert done.code == 0 and "attention.png" in done.err


@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_same_seed_gives_the_same_tweets_at_any_number(sample, count):
    many = tweets_in(sample("--num_samples=12", "--start=The", "--max_new_tokens=20").out)
    assert (
        tweets_in(sample(f"--num_samples={count}", "--start=The", "--max_new_tokens=20").out) == many[:count]
    )


def test_other_tweets_where_those_of_the_model_were_are_not_compared_with(
    command, trained, prepared, tmp_path
):
    state = torch.load(trained.folder / "best.pt", weights_only=True)
    shutil.copytree(prepared.folder, tmp_path / "data")
    state["notes"]["data_dir"] = str(tmp_path / "data")
    torch.save(state, tmp_path / "best.pt")
    assert "% new" in command("sample.py", f"--out_dir={tmp_path}").out
    with open(tmp_path / "data" / "meta.json", "a") as file:
        file.write("\n")
    done = command("sample.py", f"--out_dir={tmp_path}")
    assert done.code == 0 and "% new" not in done.out and "now holds other tweets" in done.err
