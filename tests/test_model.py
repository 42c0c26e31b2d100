"""The model: one distribution behind loss, logits and samples; GPT-2's own results; files to be trusted."""

import copy
import json
import math
import pathlib
import pickle

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from config import UserError
from model import (
    END_OF_TEXT,
    GPT,
    GPTConfig,
    HalfPrecisionCrossEntropy,
    NGrams,
    choose,
    choose_device,
    corpus_tables,
    make_gpt,
    penalized,
)
from prepare import END_OF_TEXT as PREPARED_END
from prepare import token_texts

V = 50257
BLOCK = 8
SMALL = {"block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
KINDS = {
    "full": {},
    "full, biased": {"output_bias": True, "bias": False, "gelu": "tanh", "n_layer": 1},
    "compact": {"compact_vocab": True, "output_bias": True},
    "full, separate": {"separate_tweets": True},
    "all": {
        "separate_tweets": True,
        "compact_vocab": True,
        "output_bias": True,
        "spelling": 64,
        "ngram_order": 3,
        "noise": 0.3,
    },
}
CORPUS_IDS = torch.tensor([*range(1000, 1010), 11938, 15496, 995, 262, 286, 318])  # each twice or more
ONCE = torch.tensor([329, 8378, 20000])
UNSEEN = torch.tensor([0, 198, 40000, V - 2])


def corpus():
    """Some text that is all a small model knows: (N,) ids."""
    draw = torch.randint(len(CORPUS_IDS), (300,), generator=torch.Generator().manual_seed(1))
    return torch.cat([CORPUS_IDS, CORPUS_IDS, CORPUS_IDS[draw // 2], ONCE, torch.tensor([V - 1, V - 1])])


def build(random_weights=True, **config):
    """A small GPT that knows corpus(), with weights so large that a mistake would show."""
    config, tokens = GPTConfig(**(SMALL | config)), corpus()
    tables = None
    if config.compact_vocab or config.output_bias:
        texts = token_texts() if config.spelling else None
        tables = corpus_tables(config, torch.bincount(tokens, minlength=V), texts, tokens)
    torch.manual_seed(0)
    model = make_gpt(config, tables).eval()
    if random_weights:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def models():
    return {kind: build(**config) for kind, config in KINDS.items()}


@pytest.fixture(params=KINDS)
def model(models, request):
    """A model of each kind; not to be changed."""
    return models[request.param]


def text(B=3, T=BLOCK, seed=2):
    """(B, T) ids: most that training saw often, some that it saw once or never."""
    ids = torch.cat([CORPUS_IDS, CORPUS_IDS, ONCE, UNSEEN, torch.tensor([END_OF_TEXT, END_OF_TEXT])])
    return ids[torch.randint(len(ids), (B, T), generator=torch.Generator().manual_seed(seed))]


def largest_difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_cross_entropy_in_half_precision_is_that_of_the_logits(dtype, biased):
    torch.manual_seed(0)
    shapes = [(2500, 8), (300, 8), (300,)][: 2 + biased]  # more positions than it holds at a time
    exact = [(0.5 * torch.randn(shape)).to(dtype).float().requires_grad_() for shape in shapes]
    mine = [x.detach().clone().requires_grad_() for x in exact]
    targets = torch.randint(300, (2500,))
    bias = exact[2] if biased else None
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*exact[:2], bias), targets)
    loss = HalfPrecisionCrossEntropy.apply(*mine[:2], mine[2] if biased else None, targets, dtype)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    (3 * expected).backward()
    (3 * loss).backward()
    for x, y in zip(exact, mine, strict=True):
        assert (x.grad - y.grad).norm() < 0.01 * x.grad.norm()


def test_under_autocast_targets_of_minus_one_are_ignored_as_without():
    model = build(n_layer=1).train()
    idx, targets = torch.randint(V, (2, 3, BLOCK), generator=torch.Generator().manual_seed(0))
    targets[:, ::2] = -1
    _, exact = model(idx, targets)
    with torch.autocast("cpu", torch.bfloat16):
        _, loss = model(idx, targets)
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)


# --- one distribution -----------------------------------------------------------------------------


def test_shapes(model):
    idx, targets = text(), text(seed=3)
    logits, loss = model(idx)
    assert logits.shape == (3, BLOCK, V) and loss is None
    logits, loss = model(idx, targets)
    assert logits is None and loss.shape == ()
    assert model.log_probs(idx).shape == (3, BLOCK, V)
    assert model.log_probs(idx[:1, :1]).shape == (1, 1, V)
    layers, heads = model.config.n_layer, model.config.n_head
    assert model.attention_maps(idx).shape == (layers, 3, heads, BLOCK, BLOCK)
    assert model.generate(idx, 5).shape == (3, BLOCK + 5)
    assert torch.equal(model.generate(idx, 0), idx)


def test_separate_tweets_are_read_as_if_alone():
    assert END_OF_TEXT == PREPARED_END
    idx = text(B=2)
    idx[:, 3] = END_OF_TEXT
    for separate in (True, False):
        model = build(separate_tweets=separate)
        whole, alone = model.log_probs(idx), model.log_probs(idx[:, 3:])
        assert (largest_difference(whole[:, 3:], alone) < 1e-4) == separate
        assert largest_difference(whole[:, :3], model.log_probs(idx[:, :3])) < 1e-4
        attention = model.attention_maps(idx)
        assert (attention[..., 3:, :3].max() == 0) == separate


def test_the_probabilities_of_all_ids_sum_to_one(model):
    log_probs = model.log_probs(text())
    assert log_probs.isfinite().all()
    assert largest_difference(log_probs.double().exp().sum(-1), torch.ones(3, BLOCK)) < 1e-4


def test_logits_and_log_probs_are_one_distribution(model):
    logits, _ = model(text())
    in_double = logits.double().log_softmax(-1)  # a float32 sum of 50,257 small numbers is off by 1e-4 itself
    assert largest_difference(in_double, model.log_probs(text())) < 1e-4


@pytest.mark.parametrize("B", [1, 3, 66])  # 66 * 8 targets do not fit into one chunk of the loss
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_the_loss_is_the_mean_of_minus_log_probs(model, B, ignored):
    idx, targets = text(B), text(B, seed=3)
    drop = torch.rand(B, BLOCK, generator=torch.Generator().manual_seed(4)) < ignored
    targets = targets.masked_fill(drop, -1)
    _, loss = model(idx, targets)
    log_probs = model.log_probs(idx).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert loss.item() == pytest.approx(-log_probs[targets >= 0].mean().item(), abs=1e-4)


def test_a_single_target_of_any_kind_is_scored(model):
    idx = text(1)
    for target in (CORPUS_IDS[0], ONCE[0], UNSEEN[0], torch.tensor(V - 1)):
        targets = torch.full((1, BLOCK), -1)
        targets[0, 3] = target
        assert model(idx, targets)[1].item() == pytest.approx(
            -model.log_probs(idx)[0, 3, target].item(), abs=1e-4
        )


@pytest.mark.parametrize("kind", ["full", "full, biased", "compact"])
def test_the_gradient_is_that_of_the_loss(models, kind):
    """Along its gradient, the loss must change as the gradient says, seen through log_probs."""
    model = copy.deepcopy(models[kind])
    idx, targets = text(), text(seed=3)
    model(idx, targets)[1].backward()
    grads = {p: p.grad for p in model.parameters() if p.grad is not None}
    steepness = math.sqrt(sum((g**2).sum().item() for g in grads.values()))
    assert steepness > 0.1

    def loss_at(distance):
        with torch.no_grad():
            for parameter, grad in grads.items():
                parameter += distance * grad / steepness
        loss = -model.log_probs(idx).gather(-1, targets[..., None]).mean().item()
        with torch.no_grad():
            for parameter, grad in grads.items():
                parameter -= distance * grad / steepness
        return loss

    step = 1e-2
    assert (loss_at(step) - loss_at(-step)) / (2 * step) == pytest.approx(steepness, rel=0.02)


def test_later_tokens_change_nothing_before_them(model):
    idx, changed = text(), text()
    changed[:, 5:] = text(seed=9)[:, 5:]
    before, after = model.log_probs(idx), model.log_probs(changed)
    assert largest_difference(before[:, :5], after[:, :5]) < 1e-5
    assert largest_difference(before[:, 5:], after[:, 5:]) > 1e-2
    changed = text()
    changed[:, 0] = CORPUS_IDS[-1]
    assert largest_difference(model.log_probs(text())[:, -1], model.log_probs(changed)[:, -1]) > 1e-3


def test_attention_maps_are_causal_and_rows_sum_to_one(model):
    maps = model.attention_maps(text())
    assert (maps.triu(1) == 0).all() and (maps >= 0).all()
    assert largest_difference(maps.sum(-1), torch.ones(maps.shape[:-1])) < 1e-5
    assert maps.std() > 0.05  # not all alike


def test_more_tokens_than_the_block_are_refused(model):
    for call in (model, model.log_probs, model.attention_maps):
        with pytest.raises(ValueError, match=f"{BLOCK + 1}.*{BLOCK}"):
            call(text(T=BLOCK + 1))


# --- GPT-2's architecture -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """transformers' GPT-2 with weights by chance, and the two kinds of folders that hold it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=16, attn_implementation="eager"
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder / "safetensors")
    config.save_pretrained(folder / "bin")
    torch.save(theirs.state_dict(), folder / "bin" / "pytorch_model.bin")
    return theirs, folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_logits_and_attention_equal_those_of_transformers(hugging_face, kind):
    theirs, folder = hugging_face
    assert {path.suffix for path in (folder / kind).iterdir()} >= {".json", f".{kind}"}
    ours = GPT.from_pretrained(folder / kind)
    idx = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = theirs(idx, labels=idx, output_attentions=True)
        logits, _ = ours(idx)
        _, loss = ours(idx[:, :-1], idx[:, 1:])
    assert expected.logits.std() > 0.1
    assert largest_difference(logits, expected.logits) < 1e-4
    assert largest_difference(ours.log_probs(idx), expected.logits.log_softmax(-1)) < 1e-4
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-4)
    assert largest_difference(ours.attention_maps(idx), torch.stack(expected.attentions)) < 1e-5


def test_greedy_text_equals_that_of_transformers(hugging_face):
    theirs, folder = hugging_face
    idx = torch.tensor([[V - 1, 11938, 318]])
    expected = theirs.generate(
        idx, attention_mask=torch.ones_like(idx), max_new_tokens=12, do_sample=False, pad_token_id=V - 1
    )
    found = GPT.from_pretrained(folder / "bin").generate(idx, 12, temperature=0, stop_token=V - 1)
    assert torch.equal(found, expected)


def test_the_head_is_the_embedding():
    model = build(random_weights=False)
    with_a_row_an_id = [p for p in model.parameters() if V in p.shape]
    assert len(with_a_row_an_id) == 1
    C, T, layers = 16, BLOCK, 2
    block = (4 + 8) * C * C + (4 + 5) * C + 4 * C  # matrices, their biases, two LayerNorms
    assert sum(p.numel() for p in model.parameters()) == V * C + T * C + layers * block + 2 * C


def test_the_weights_start_as_gpt2s_do():
    model = build(random_weights=False, n_embd=64, n_layer=3)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
        else:
            assert (parameter == name.endswith("weight")).all(), name  # gains are 1, biases 0
    assert model(text(), text(seed=3))[1].item() == pytest.approx(math.log(V), abs=0.1)


def test_an_output_bias_starts_at_the_frequencies():
    counts = torch.bincount(corpus(), minlength=V)
    expected = (counts[CORPUS_IDS] / counts.sum()).log()
    for compact in (True, False):
        model = build(random_weights=False, output_bias=True, compact_vocab=compact)
        log_probs = model.log_probs(text())[..., CORPUS_IDS]
        log_probs = log_probs - log_probs.logsumexp(
            -1, keepdim=True
        )  # how much goes to rare ones is another matter
        assert largest_difference(log_probs, expected - expected.logsumexp(-1)) < 0.5


def test_dropout_acts_in_training_only():
    model = build(dropout=0.5)
    idx, targets = text(), text(seed=3)
    assert model(idx, targets)[1] == model(idx, targets)[1]
    model.train()
    assert model(idx, targets)[1] != model(idx, targets)[1]


@pytest.mark.parametrize(
    "values, name",
    [
        ({"n_layer": 0}, "n_layer"),
        ({"n_head": -1}, "n_head"),
        ({"block_size": 0}, "block_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"block_size": "64"}, "block_size"),
        ({"n_embd": 16.0}, "n_embd"),
        ({"n_embd": 10, "n_head": 3}, "n_embd"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"bias": 1}, "bias"),
        ({"gelu": "relu"}, "gelu"),
        ({"compact_vocab": True, "ngram_order": 1}, "ngram_order"),
        ({"compact_vocab": True, "ngram_order": 5, "ngram_weight": 0.0}, "ngram_weight"),
        ({"compact_vocab": True, "noise": 0.5}, "noise needs an ngram_order"),
    ],
)
def test_a_shape_that_fits_no_model_is_refused(values, name):
    with pytest.raises(UserError, match=name):
        GPTConfig(**values)


def test_a_config_is_frozen():
    with pytest.raises(AttributeError):
        GPTConfig().n_layer = 3


def test_a_compact_vocabulary_needs_to_know_the_corpus():
    with pytest.raises(UserError, match="compact_vocab"):
        make_gpt(GPTConfig(compact_vocab=True))
    with pytest.raises(UserError, match="make_gpt"):
        GPT(GPTConfig(compact_vocab=True))


def test_what_it_returns_can_be_used_in_training(model):
    """No tensors that refuse changes in place, and no logits that are cut off from the weights."""
    idx = text()
    model.log_probs(idx).add_(1), model.attention_maps(idx).add_(1)
    gradients = torch.autograd.grad(model(idx)[0].logsumexp(-1).square().mean(), model.wpe.weight)
    assert gradients[0].abs().max() > 0


def test_buffers_are_in_the_order_of_the_tables():
    """Processes that train together exchange them by it."""
    config = GPTConfig(**SMALL | KINDS["all"])
    tables = corpus_tables(config, torch.bincount(corpus(), minlength=V), token_texts(), corpus())
    registered = [name for name, _ in make_gpt(config, tables).tables.named_buffers()]
    assert registered[: len(tables) - 9] == [name for name in tables if not name[-1].isdigit()]


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="'nonsense'"):
        choose_device("nonsense")
    assert choose_device("cpu") == torch.device("cpu")
    assert isinstance(choose_device("auto"), torch.device)


# --- generation -----------------------------------------------------------------------------------


def may_be_drawn(model):
    """(V,) which ids sampling may emit: those that training saw."""
    if not model.config.compact_vocab:
        return torch.ones(V, dtype=torch.bool)
    return torch.bincount(corpus(), minlength=V) > 0


def windows(idx, steps, block_size):
    """What is read before each new token of `idx`: when the block is full, its newest half is kept."""
    first = idx.shape[1] - steps
    begin = max(first - block_size, 0)
    for end in range(first, idx.shape[1]):
        yield idx[:, begin:end], idx[:, end]
        if end - begin == block_size:
            begin = end + 1 - block_size // 2


def read_again(model, idx, steps):
    """The log-probabilities before each new token, without a cache: steps of (B, V), and the token."""
    allowed = may_be_drawn(model)
    for window, token in windows(idx, steps, model.config.block_size):
        yield model.log_probs(window)[:, -1].masked_fill(~allowed, -math.inf), token


@pytest.mark.parametrize("T", [1, 5, BLOCK, BLOCK + 5])
@pytest.mark.parametrize("B", [1, 2, 5])
def test_greedy_takes_the_likeliest_also_past_the_block(model, B, T):
    idx, steps = text(B, T), 2 * BLOCK + 3
    tokens = model.generate(idx, steps, temperature=0)
    assert tokens.shape == (B, T + steps) and torch.equal(tokens[:, :T], idx)
    for log_probs, token in read_again(model, tokens, steps):
        best = log_probs.max(-1).values
        assert largest_difference(log_probs.gather(1, token[:, None])[:, 0], best) < 1e-4


def test_a_shared_prompt_gives_each_row_the_same_as_alone(model):
    idx = text(1, 3).expand(3, -1)
    together = model.generate(idx, 2 * BLOCK, temperature=0.7, seeds=[1, 2, 3])
    assert len({tuple(row) for row in together.tolist()}) == 3
    for row, seed in zip(together, [1, 2, 3], strict=True):
        assert torch.equal(model.generate(idx[:1], 2 * BLOCK, temperature=0.7, seeds=[seed])[0], row)


def test_a_row_depends_on_its_seed_and_not_on_its_batch(model):
    idx, seeds = text(5, 4), [5, 6, 7, 8, 9]
    tokens = model.generate(idx, 2 * BLOCK, seeds=seeds)
    assert torch.equal(model.generate(idx, 2 * BLOCK, seeds=seeds), tokens)
    assert torch.equal(model.generate(idx[2:4], 2 * BLOCK, seeds=seeds[2:4]), tokens[2:4])
    assert not torch.equal(model.generate(idx, 2 * BLOCK, seeds=[1, 2, 3, 4, 5]), tokens)


def test_what_a_row_is_drawn_from_is_the_same_to_the_bit_in_any_small_batch(monkeypatch):
    model, seen = build(n_embd=128, n_head=4, block_size=32), []
    monkeypatch.setattr("model.choose", lambda logits, *_: seen.append(logits[0]) or logits.argmax(-1))
    for B in (1, 2, 3, 4):  # beyond, it depends on the machine's library of matrix products
        model.generate(text(1, 5).repeat(B, 1), 12, seeds=range(B))
    steps = [seen[start : start + 12] for start in range(0, 48, 12)]
    for alone, others in zip(steps[0], zip(*steps[1:], strict=True), strict=True):
        assert all(torch.equal(alone, other) for other in others)


def test_one_token_blocks_generate():
    model = build(block_size=1)
    idx = text(2, 3)
    tokens = model.generate(idx, 4, temperature=0)
    for step in range(4):
        assert torch.equal(
            model.log_probs(tokens[:, 2 + step : 3 + step])[:, 0].argmax(-1), tokens[:, 3 + step]
        )


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"temperature": 2e-38}],
    ids=str,
)
def test_what_leaves_no_choice_is_greedy(model, how):
    idx, steps = text(4, 3), BLOCK
    tokens = model.generate(idx, steps, seeds=range(4), **how)
    for log_probs, token in read_again(model, tokens, steps):
        chosen = log_probs.gather(1, token[:, None])[:, 0]
        assert (
            largest_difference(chosen, log_probs.max(-1).values) < 1e-3
        )  # a temperature of 1e-4 may take a tie


@pytest.mark.parametrize("k", [2, 5])
def test_top_k_draws_among_the_k_likeliest(model, k):
    idx = text(1, 3).expand(200, -1)
    tokens = model.generate(idx, 1, temperature=5.0, top_k=k, seeds=range(200))[:, -1]
    log_probs, _ = next(read_again(model, torch.cat([idx[:1], tokens[:1, None]], 1), 1))
    assert set(tokens.tolist()) == set(log_probs[0].topk(k).indices.tolist())


def test_top_p_draws_among_the_fewest_that_reach_it(model):
    idx = text(1, 3).expand(100, -1)
    tokens = model.generate(idx, 1, top_p=0.5, seeds=range(100))[:, -1]
    log_probs, _ = next(read_again(model, torch.cat([idx[:1], tokens[:1, None]], 1), 1))
    probs, order = log_probs[0].softmax(-1).sort(descending=True)
    needed = int((probs.cumsum(0) < 0.5).sum()) + 1
    assert set(tokens.tolist()) <= set(order[:needed].tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_is_likely(models, temperature):
    model, n = models["compact"], 4000
    idx = text(1, 3).expand(n, -1)
    tokens = model.generate(idx, 1, temperature=temperature, seeds=range(n))[:, -1]
    log_probs, _ = next(read_again(model, torch.cat([idx[:1], tokens[:1, None]], 1), 1))
    expected = (log_probs[0] / temperature).softmax(-1)
    found = torch.bincount(tokens, minlength=V) / n
    allowance = 5 * (expected * (1 - expected) / n).sqrt() + 1 / n  # five standard deviations
    assert ((found - expected).abs() <= allowance).all()


def test_a_repetition_penalty_makes_repeating_less_likely(model):
    """A row's own tokens are those that have their log-probability multiplied."""
    idx = text(1, 5)
    for log_probs, token in read_again(
        model, model.generate(idx, 1, temperature=0, repetition_penalty=3.0), 1
    ):
        held = torch.zeros(V, dtype=torch.bool)
        held[idx[0]] = True
        penalised = torch.where(held, 3.0 * log_probs[0], log_probs[0])
        assert penalised[token[0]].item() == pytest.approx(penalised.max().item(), abs=1e-4)


def test_a_repetition_penalty_touches_what_was_said_alone():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
    before = logits.log_softmax(-1)
    after = penalized(logits, torch.tensor([[1, 3], [0, 0]]), 2.0)  # 3: no candidate
    changed = torch.tensor([[False, True, False], [True, False, False]])
    assert torch.allclose(after, torch.where(changed, 2 * before, before), atol=1e-6)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(st.lists(st.integers(0, 4), min_size=5, max_size=40), st.integers(2, 5))
def test_an_ngram_model_of_any_text_is_a_distribution(tokens, order):
    tables = NGrams.count(torch.tensor(tokens), 5, order)
    assert all(bool(table.isfinite().all() and table.min() >= 0) for table in tables.values())
    model, idx = NGrams(tables), torch.tensor([tokens, tokens[::-1]])
    probs = model(model.contexts(idx))
    assert largest_difference(probs.sum(-1), torch.ones(idx.shape)) < 1e-5
    of_targets = model(model.contexts(idx), idx.flip(1))
    assert largest_difference(of_targets, probs.gather(-1, idx.flip(1)[..., None])[..., 0]) < 1e-6


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(temperature, broken):
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, broken, 0.5]])
    with pytest.raises(UserError, match="not finite"):
        choose(logits, torch.zeros(2), temperature, None, 1.0)


def test_a_text_of_no_tokens_is_none(model):
    idx = torch.tensor([[11938, END_OF_TEXT], [END_OF_TEXT, 11938]]).repeat(50, 1)
    tokens = model.generate(idx, 1, temperature=50.0, stop_token=END_OF_TEXT, seeds=range(100))[:, -1]
    assert (tokens[::2] != END_OF_TEXT).all()
    free = model.generate(idx, 1, temperature=50.0, seeds=range(100))[:, -1]
    assert torch.equal(tokens[1::2], free[1::2])


def test_a_stopped_row_is_filled_with_the_stop_token(models):
    idx, stop = text(1, 3).expand(8, -1), CORPUS_IDS[0].item()
    free = models["compact"].generate(idx, 60, temperature=2.0, seeds=range(8))
    stopped = models["compact"].generate(idx, 60, temperature=2.0, seeds=range(8), stop_token=stop)
    assert 3 < stopped.shape[1] <= 63
    ends = []
    for row, unstopped in zip(stopped[:, 3:].tolist(), free[:, 3:].tolist(), strict=True):
        end = row.index(stop) if stop in row else len(row)
        assert row[:end] == unstopped[:end]  # nothing changes before the stop
        assert set(row[end:]) <= {stop}
        ends.append(end)
    assert len(set(ends)) > 1 and min(ends) < 60
    assert stopped.shape[1] == min(3 + max(ends) + 1, 63)  # and it ends as soon as all rows have


@pytest.mark.parametrize("kind", ["compact", "all"])
def test_ids_that_training_never_saw_are_never_drawn(models, kind):
    idx = UNSEEN.repeat(16, 1)
    tokens = models[kind].generate(idx, 3 * BLOCK, temperature=50.0, seeds=range(16))[:, len(UNSEEN) :]
    assert may_be_drawn(models[kind])[tokens].all()
    assert len(tokens.unique()) > 10


# --- files ----------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_the_same(model, tmp_path):
    path = tmp_path / "new" / "model.pt"
    model.save(path, answer=42)
    loaded = GPT.load(path)
    assert loaded.config == model.config and loaded.notes["answer"] == 42
    assert not loaded.training
    assert torch.equal(loaded.log_probs(text()), model.log_probs(text()))
    assert torch.equal(
        loaded.generate(text(), 20, seeds=[1, 2, 3]), model.generate(text(), 20, seeds=[1, 2, 3])
    )
    assert torch.load(path, weights_only=True)["config"]  # no code in the file


class Code:
    """What an attacker would put into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def damaged(good, tmp_path):
    """Files that are no checkpoint of this program, by what is wrong."""
    state = torch.load(good, weights_only=True)
    whole = good.read_bytes()
    yield "empty", b""
    yield "cut in half", whole[: len(whole) // 2]
    yield "cut at the end", whole[:-10]
    yield "text", b"hello world\n"
    yield "a pop too many", b"h"
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(100)
    for name, content in {
        "a tensor": torch.zeros(3),
        "another dictionary": {"weights": torch.zeros(3)},
        "another format": state | {"format": 999},
        "no weights": {key: value for key, value in state.items() if key != "model"},
        "weights that are no dictionary": state | {"model": None},
        "no config": {key: value for key, value in state.items() if key != "config"},
        "a config that is a list": state | {"config": [1]},
        "an unknown setting": state | {"config": state["config"] | {"n_legs": 4}},
        "a value of the wrong type": state | {"config": state["config"] | {"n_layer": "two"}},
        "weights of another shape": state | {"config": state["config"] | {"n_embd": 32}},
        "a weight too few": state | {"model": dict(list(state["model"].items())[:-1])},
    }.items():
        path = tmp_path / "made.pt"
        torch.save(content, path)
        yield name, path.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["full, biased", "all"])
def test_a_file_that_is_no_checkpoint_is_told(models, tmp_path, kind):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    models[kind].save(good)
    wrong = []
    for name, content in damaged(good, tmp_path):
        bad.write_bytes(content)
        try:
            GPT.load(bad)
            wrong.append(f"{name}: was loaded")
        except UserError as error:
            if "bad.pt" not in str(error):
                wrong.append(f"{name}: {error} names no file")
        except Exception as error:
            wrong.append(f"{name}: {error!r}")
    assert not wrong


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_code_in_a_file_is_not_run(tmp_path, write):
    path = tmp_path / "bad.pt"
    write({"format": 1, "config": {}, "model": {}, "notes": Code(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=r"bad\.pt"):
        GPT.load(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))  # noqa: S301 - it would have been
    assert (tmp_path / "ran").exists()


def test_a_missing_checkpoint_names_the_next_command(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pt.*train\.py"):
        GPT.load(tmp_path / "gone.pt")


def break_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text("{}"),
        lambda folder: break_config(folder, n_layer=3),
        lambda folder: break_config(folder, n_embd=64),
        lambda folder: break_config(folder, n_head=5),
        lambda folder: (folder / "pytorch_model.bin").unlink(),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"half"),
        lambda folder: torch.save([1], folder / "pytorch_model.bin"),
        lambda folder: torch.save({"x": Code(folder / "ran")}, folder / "pytorch_model.bin"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"half"),
    ],
    ids=["no config", "half a config", "a list", "an empty config", "a layer too many", "another width",
         "heads that do not fit", "no weights", "damaged weights", "no dictionary", "code",
         "damaged safetensors"],
)  # fmt: skip
def test_a_folder_that_holds_no_gpt2_is_told_and_runs_no_code(hugging_face, tmp_path, harm):
    for path in (hugging_face[1] / "bin").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    harm(tmp_path)
    with pytest.raises(UserError):
        GPT.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()
