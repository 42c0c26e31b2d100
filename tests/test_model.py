"""The model: one distribution behind loss, log_probs and samples; what each token may see; its files."""

import pathlib
import pickle

import pytest
import torch

from config import UserError
from model import END_OF_TEXT, GPT, GPTConfig, choose_device, describe
from prepare import token_texts

V, BLOCK = 50257, 8
SMALL = {"block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
KINDS = {
    "full": {},
    "compact": {"compact_vocab": True},
    "all": {"separate_tweets": True, "compact_vocab": True, "spelling": 64, "noise": 0.5},
}
# what the text below is made of: tokens that training holds often, twice, once and never
OFTEN, TWICE = [*range(1000, 1010), END_OF_TEXT, 11938, 318], [500, 501]
ONCE, NEVER = [329, 8378, 20000], [0, 198, 40000]
FEW = ["a", " b", " B", "cc", " dd", " Dd", "7", " 42", "!", " ?"] * 3  # a vocabulary of thirty texts


def build(kind, few=(), **config):
    """A small GPT with weights so large that a mistake would show, of GPT-2's vocabulary or of FEW.

    few: the training tokens, if those are ids of FEW.
    """
    config = GPTConfig(**SMALL | KINDS[kind] | {"vocab_size": len(FEW) if few else V} | config)
    tokens = torch.tensor(few or OFTEN * 9 + TWICE * 2 + ONCE)
    tables = describe(FEW if few else token_texts(), config.spelling) if config.compact_vocab else None
    torch.manual_seed(0)
    model = GPT(config, tokens, tables).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: build(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(models, request):
    """A model of each kind, not to be changed."""
    return models[request.param]


@pytest.fixture(scope="module", params=KINDS)
def few(request):
    """The same with a vocabulary of thirty ids, of which one can draw thousands."""
    return build(request.param, few=[*range(12), *range(20)])


def text(B=3, T=BLOCK, seed=2):
    """(B, T) ids that training saw often, once or never."""
    ids = torch.tensor(OFTEN + TWICE + ONCE + NEVER)
    return ids[torch.randint(len(ids), (B, T), generator=torch.Generator().manual_seed(seed))]


def far(a, b):
    """The largest difference."""
    return (a - b).abs().max().item()


def draw(model, idx, steps=1, seed=1, **how):
    return model.generate(idx, steps, generator=torch.Generator().manual_seed(seed), **how)


# --- one distribution -----------------------------------------------------------------------------


def test_the_probabilities_of_all_ids_sum_to_one(model):
    idx = text()
    log_probs = model.log_probs(idx)
    assert log_probs.shape == (*idx.shape, V) and log_probs.isfinite().all()
    assert far(log_probs.double().exp().sum(-1), torch.ones(idx.shape)) < 1e-5
    assert far(model(idx)[0].double().log_softmax(-1), log_probs) < 1e-4


@pytest.mark.parametrize(
    "tokens",
    [[5] * 9, [0, 1] * 9 + [2], [0, 1, 2] * 2, [*range(30)], [*range(30)] * 3],
    ids=["a single one", "none twice", "none once", "all once", "all thrice"],
)
def test_so_they_do_after_any_training_text(tokens):
    log_probs = build("all", few=tokens).log_probs(torch.arange(BLOCK)[None])
    assert log_probs.isfinite().all()
    assert far(log_probs.double().exp().sum(-1), torch.ones(1, BLOCK)) < 1e-5


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


# --- what each token may see ----------------------------------------------------------------------


def test_later_tokens_change_nothing_before_them(model):
    idx, changed = text(), text()
    changed[:, 5:] = text(seed=9)[:, 5:]
    before, after = model.log_probs(idx), model.log_probs(changed)
    assert far(before[:, :5], after[:, :5]) < 1e-5 and far(before[:, 5:], after[:, 5:]) > 1e-2


def test_separate_tweets_are_read_as_if_alone():
    idx = text(B=2)
    idx[:, 3] = END_OF_TEXT
    for separate in (True, False):
        model = build("full", separate_tweets=separate)
        whole, alone = model.log_probs(idx), model.log_probs(idx[:, 3:])
        assert (far(whole[:, 3:], alone) < 1e-4) == separate
        assert far(whole[:, :3], model.log_probs(idx[:, :3])) < 1e-4
        assert (model.attention_maps(idx)[..., 3:, :3].max() == 0) == separate


def test_attention_maps_are_causal_and_rows_sum_to_one(model):
    maps = model.attention_maps(text())
    assert maps.shape == (2, 3, 2, BLOCK, BLOCK) and (maps.triu(1) == 0).all() and (maps >= 0).all()
    assert far(maps.sum(-1), torch.ones(maps.shape[:-1])) < 1e-5
    assert maps.std() > 0.05  # not all alike


@pytest.mark.parametrize("regulariser", ["dropout", "noise"])
def test_dropout_and_noise_act_in_training_only(regulariser):
    model, idx = build("full", **{regulariser: 0.5}), text()
    assert torch.equal(model(idx)[0], model(idx)[0])
    assert far(model(idx)[0], build("full")(idx)[0]) < 1e-5
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=f"{BLOCK + 1}.*{BLOCK}"):
        model(text(T=BLOCK + 1))
    with pytest.raises(UserError, match=r"n_embd.*10.*n_head.*3"):
        GPTConfig(n_embd=10, n_head=3)
    with pytest.raises(UserError, match="'nonsense'"):
        choose_device("nonsense")
    assert choose_device("cpu") == torch.device("cpu")


# --- generation -----------------------------------------------------------------------------------


def read_again(model, idx, steps):
    """The log-probabilities before each new token, without a cache: steps of (B, V), and the token.

    When the block is full, its newest half is kept.
    """
    first = idx.shape[1] - steps
    begin = max(first - model.config.block_size, 0)
    for end in range(first, idx.shape[1]):
        yield model.log_probs(idx[:, begin:end])[:, -1], idx[:, end]
        if end - begin == model.config.block_size:
            begin = end + 1 - model.config.block_size // 2


@pytest.mark.parametrize("T", [1, 5, BLOCK, BLOCK + 5])
def test_greedy_takes_the_likeliest_also_past_the_block(model, T):
    idx, steps = text(2, T), 2 * BLOCK + 3
    tokens = draw(model, idx, steps, temperature=0)
    assert tokens.shape == (2, T + steps) and torch.equal(tokens[:, :T], idx)
    for log_probs, token in read_again(model, tokens, steps):
        assert far(log_probs.gather(1, token[:, None])[:, 0], log_probs.max(-1).values) < 1e-4


@pytest.mark.parametrize(
    "how, allowed",
    [
        ({}, lambda p: p >= 0),
        ({"temperature": 0.5}, lambda p: p >= 0),
        ({"temperature": 2.0, "top_k": 4}, lambda p: p >= p.topk(4).values[-1]),
        ({"top_p": 0.6}, lambda p: p >= p.sort().values[p.sort().values.cumsum(0) > 0.4][0]),
        ({"min_p": 0.3}, lambda p: p >= 0.3 * p.max()),
        ({"banned": [3, 7]}, lambda p: ~torch.isin(torch.arange(len(p)), torch.tensor([3, 7]))),
        ({"top_k": 1}, lambda p: p == p.max()),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(few, how, allowed):
    n, idx = 5_000, torch.tensor([[1, 5, 2]])
    tokens = draw(few, idx.expand(n, -1), **how)[:, -1]
    probs = (few.log_probs(idx)[0, -1].double() / how.get("temperature", 1.0)).softmax(-1)
    probs = probs * allowed(probs)
    probs /= probs.sum()
    found = torch.bincount(tokens, minlength=len(FEW)) / n
    assert (found[probs == 0] == 0).all()
    assert ((found - probs).abs() <= 5 * (probs / n).sqrt() + 1 / n).all()  # five standard deviations
    assert torch.equal(tokens, draw(few, idx.expand(n, -1), **how)[:, -1])
    only = int((probs > 0).sum()) == 1
    assert only or not torch.equal(tokens, draw(few, idx.expand(n, -1), seed=2, **how)[:, -1])


def test_a_row_that_has_ended_is_filled_with_the_end(few, monkeypatch):
    monkeypatch.setattr("model.END_OF_TEXT", 0)
    tokens = draw(few, torch.tensor([[1, 2, 3]] * 16), 400, temperature=2.0)[:, 3:].tolist()
    ends = [row.index(0) for row in tokens]
    assert all(set(row[end:]) == {0} for row, end in zip(tokens, ends, strict=True))
    assert len(set(ends)) > 1 and len(tokens[0]) == max(ends) + 1  # no longer than the longest


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_scores_that_are_no_numbers_are_told(temperature):
    model = build("full", few=[0])
    model.ln_f.weight.data.fill_(3e38)
    with pytest.raises(UserError, match="not finite"):
        draw(model, torch.tensor([[1]]), temperature=temperature)


# --- files ----------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("kind", ["full", "all"])
def test_a_file_that_is_no_checkpoint_is_told_and_runs_no_code(models, tmp_path, kind):
    good, bad, ran = tmp_path / "good.pt", tmp_path / "bad.pt", tmp_path / "ran"
    models[kind].save(good)
    saved, whole = torch.load(good, weights_only=True), good.read_bytes()
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
    if kind == "full":  # it keeps no table of them
        del cases["other training tokens"]
    for name, content in cases.items():
        if isinstance(content, bytes):
            bad.write_bytes(content)
        else:
            torch.save(content, bad)
        with pytest.raises(UserError, match=r"bad\.pt"):
            GPT.load(bad)
            pytest.fail(f"{name}: was loaded")
    assert not ran.exists()
    with pytest.raises(UserError, match=r"gone\.pt.*train\.py"):
        GPT.load(tmp_path / "gone.pt")
