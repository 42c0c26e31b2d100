"""The model: one distribution behind loss, log_probs and samples; what each token may see; its files."""

import pathlib
import pickle

import pytest
import torch

from config import UserError
from model import GPT, GPTConfig, choose, token_tables

V, BLOCK, END = 30, 8, 0
SMALL = {"vocab_size": V, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
KINDS = {
    "full": {},
    "compact": {"compact_vocab": True},
    "all": {"separate_tweets": True, "compact_vocab": True, "spelling": 64, "noise": 0.5},
}
TEXTS = ["a", " b", " B", "cc", " dd", " Dd", "7", " 42", "!", " ?"] * 3  # of the ids
TOKENS = [*range(12)] * 9 + [*range(12, 16)] * 2 + [*range(16, 22)]  # often, twice and once; eight ids never


@pytest.fixture(autouse=True)
def end_of_text(monkeypatch):
    monkeypatch.setattr("model.END_OF_TEXT", END)


def build(kind, tokens=TOKENS, **config):
    """A small GPT with weights so large that a mistake would show."""
    config = GPTConfig(**SMALL | KINDS[kind] | config)
    tables = token_tables(TEXTS, config.spelling) if config.compact_vocab else None
    torch.manual_seed(0)
    model = GPT(config, torch.tensor(tokens), tables).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """A model of each kind, not to be changed."""
    return build(request.param)


def text(B=3, T=BLOCK, seed=2):
    """(B, T) ids."""
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def far(a, b):
    """The largest difference."""
    return (a - b).abs().max().item()


def draw(model, idx, steps=1, **how):
    return model.generate(idx, steps, generator=torch.Generator().manual_seed(1), **how)


def check_probabilities(model, idx):
    log_probs = model.log_probs(idx)
    assert log_probs.shape == (*idx.shape, model.config.vocab_size) and log_probs.isfinite().all()
    assert far(log_probs.double().exp().sum(-1), torch.ones(idx.shape)) < 1e-5
    assert far(model(idx)[0].double().log_softmax(-1), log_probs) < 1e-4


def test_the_probabilities_of_all_ids_sum_to_one(model, trained):
    check_probabilities(model, text())
    check_probabilities(GPT.load(trained.folder / "best.pt"), text() * 1000)


@pytest.mark.parametrize(
    "tokens",
    [[5] * 9, [0, 1] * 9 + [2], [0, 1, 2] * 2, [*range(30)], [*range(30)] * 3],
    ids=["a single one", "none twice", "none once", "all once", "all thrice"],
)
def test_so_they_do_after_any_training_text(tokens):
    check_probabilities(build("all", tokens), text())


def test_rare_tokens_are_as_likely_as_good_and_turing_say():
    """Six tokens occur once and four twice, so new text holds 2 * 4 of the former and 6 that are new."""
    model = build("compact")
    used, trained = model.log_probs(text()), model.train().log_probs(text())
    gain = used - trained
    assert far(gain[..., 16:] - gain[..., :1], torch.tensor((6 + 2 * 4) / 6).log()) < 1e-4
    assert far(used[..., 16] - used[..., 26], torch.tensor(2 * 4 / 6).log()) < 1e-4  # which look alike


@pytest.mark.parametrize("B", [1, 66])  # 66 * 8 targets do not fit into one chunk of the loss
def test_the_loss_is_the_mean_of_minus_log_probs(model, B):
    idx, targets = text(B), text(B, seed=3)
    targets[torch.rand(B, BLOCK, generator=torch.Generator().manual_seed(4)) < 0.4] = -1
    logits, loss = model(idx, targets)
    log_probs = model.log_probs(idx).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert logits is None
    assert loss.item() == pytest.approx(-log_probs[targets >= 0].mean().item(), abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(idx, targets)[1].item() == pytest.approx(loss.item(), rel=0.02)


def test_later_tokens_change_nothing_before_them(model):
    idx, changed = text(), text()
    changed[:, 5:] = text(seed=9)[:, 5:]
    before, after = model.log_probs(idx), model.log_probs(changed)
    assert far(before[:, :5], after[:, :5]) < 1e-5 and far(before[:, 5:], after[:, 5:]) > 1e-2


@pytest.mark.parametrize("separate", [True, False])
def test_separate_tweets_are_read_as_if_alone(separate):
    model, idx = build("full", separate_tweets=separate), text(B=2)
    idx[:, 3] = END
    whole, alone = model.log_probs(idx), model.log_probs(idx[:, 3:])
    assert (far(whole[:, 3:], alone) < 1e-4) == separate
    assert far(whole[:, :3], model.log_probs(idx[:, :3])) < 1e-4
    assert (model.attention_maps(idx)[..., 3:, :3].max() == 0) == separate


@pytest.mark.parametrize("regulariser", ["dropout", "noise"])
def test_dropout_and_noise_act_in_training_only(regulariser):
    model, idx = build("full", **{regulariser: 0.5}), text()
    assert far(model(idx)[0], build("full")(idx)[0]) < 1e-5
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


@pytest.mark.parametrize("T", [1, 5, BLOCK, BLOCK + 5])
def test_greedy_takes_what_is_likeliest_without_a_cache_too(model, T):
    steps, begin = 2 * BLOCK + 3, max(T - BLOCK, 0)
    tokens = draw(model, text(2, T), steps, temperature=0, banned=[END])
    assert tokens.shape == (2, T + steps) and torch.equal(tokens[:, :T], text(2, T))
    assert not tokens.is_inference()  # they can be trained on
    for end in range(T, T + steps):
        log_probs = model.log_probs(tokens[:, begin:end])[:, -1]
        likeliest = log_probs[:, END + 1 :].max(-1).values  # because the end is banned
        assert far(log_probs.gather(1, tokens[:, end, None])[:, 0], likeliest) < 1e-4
        if end - begin == BLOCK:  # it is full: its newest half is kept
            begin = end + 1 - BLOCK // 2


@pytest.mark.parametrize(
    "how, allowed",
    [
        ({}, lambda p: p >= 0),
        ({"temperature": 0.5}, lambda p: p >= 0),
        ({"temperature": 2.0, "top_k": 4}, lambda p: p >= p.topk(4).values[-1]),
        ({"top_k": 1}, lambda p: p == p.max()),
        ({"top_p": 0.0}, lambda p: p == p.max()),
        ({"top_p": 0.6}, lambda p: p >= p.sort().values[p.sort().values.cumsum(0) > 0.4][0]),
        ({"min_p": 0.3}, lambda p: p >= 0.3 * p.max()),
        ({"banned": [3, 7]}, lambda p: ~torch.isin(torch.arange(len(p)), torch.tensor([3, 7]))),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_tokens_are_drawn_as_often_as_they_are_likely(model, how, allowed):
    n, idx = 5_000, torch.tensor([[1, 5, 2]])
    probs = (model.log_probs(idx)[0, -1].double() / how.get("temperature", 1.0)).softmax(-1)
    probs = probs * allowed(probs) / probs[allowed(probs)].sum()
    found = torch.bincount(draw(model, idx.expand(n, -1), **how)[:, -1], minlength=V) / n
    assert (found[probs == 0] == 0).all()
    assert ((found - probs).abs() <= 5 * (probs / n).sqrt() + 1 / n).all()  # five standard deviations


@pytest.mark.parametrize("how", [(0, 1.0, 0.2), (3, 1.0, 0.0), (0, 0.8, 0.0), (9, 0.9, 0.1)], ids=str)
def test_each_row_is_drawn_as_if_alone(how):
    together, alone = (torch.Generator().manual_seed(1) for _ in range(2))
    logits = 2 * torch.randn(400, V, generator=torch.Generator().manual_seed(2))
    rows = [choose(row[None], 0.9, *how, alone) for row in logits]
    assert torch.equal(choose(logits, 0.9, *how, together), torch.cat(rows))


def test_a_row_that_has_ended_is_filled_with_the_end(model):
    tokens = draw(model, torch.tensor([[1, 2, 3]] * 16), 400, temperature=2.0)[:, 3:].tolist()
    ends = [row.index(END) for row in tokens]
    assert all(set(row[end:]) == {END} for row, end in zip(tokens, ends, strict=True))
    assert len(set(ends)) > 1 and len(tokens[0]) == max(ends) + 1  # no longer than the longest


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_scores_that_are_no_numbers_are_told(temperature):
    model = build("full")
    model.ln_f.weight.data.fill_(3e38)
    with pytest.raises(UserError, match="not finite"):
        draw(model, torch.tensor([[1]]), temperature=temperature)


def test_a_saved_model_comes_back_the_same(model, tmp_path):
    path = tmp_path / "new" / "model.pt"
    model.save(path, answer=42)
    loaded = GPT.load(path)
    assert (loaded.config, loaded.notes, loaded.training) == (model.config, {"answer": 42}, False)
    assert torch.equal(loaded.log_probs(text()), model.log_probs(text()))
    assert torch.equal(draw(loaded, text(), 20), draw(model, text(), 20))
    assert torch.equal(loaded.tokens, model.tokens)


class Code(str):
    """What an attacker would put into a pickle: it makes the file that it names."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(str(self)),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_no_checkpoint_is_told_and_runs_no_code(command, trained, the_error, tmp_path):
    path, ran, whole = tmp_path / "best.pt", tmp_path / "ran", (trained.folder / "best.pt").read_bytes()
    saved = torch.load(trained.folder / "best.pt", weights_only=True)
    config, weights = saved["config"], saved["model"]
    cases = {
        "empty": b"",
        "cut in half": whole[: len(whole) // 2],
        "text": b"hello world\n",
        "a pickle with code": pickle.dumps(saved | {"notes": Code(ran)}),
        "a checkpoint with code": saved | {"notes": Code(ran)},
        "a tensor": torch.zeros(3),
        "no weights": {key: value for key, value in saved.items() if key != "model"},
        "an unknown setting": saved | {"config": config | {"n_legs": 4}},
        "weights of another shape": saved | {"config": config | {"n_embd": 32}},
        "a weight too few": saved | {"model": dict(list(weights.items())[:-1])},
        "other training tokens": saved | {"tokens": saved["tokens"][:9]},
    }
    for name, content in cases.items():
        print(name)  # which pytest shows with a failure
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        assert "best.pt" in the_error(command("sample.py", f"--out_dir={tmp_path}"), "sample.py")
    assert not ran.exists()
    path.unlink()
    path.mkdir()
    assert "directory" in the_error(command("sample.py", f"--out_dir={tmp_path}"), "sample.py")
