"""GPT-2's weights in and out: training on from them, writing with them, and a folder for transformers."""

import json
import shutil

import pytest
import torch

from config import UserError
from model import GPT

transformers = pytest.importorskip("transformers")
V = 50257
TINY = [
    "--max_iters=4",
    "--eval_interval=2",
    "--batch_size=2",
    "--device=cpu",
    "--block_size=8",
    "--dropout=0.1",
]


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """transformers' GPT-2 in two shapes with weights by chance, and the folders that hold them."""
    found = {}
    for name, shape in (("wide", (1, 2, 128, 32)), ("deep", (3, 1, 64, 16))):
        n_layer, n_head, n_embd, n_positions = shape
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=n_positions
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder / "safe")
        (folder / "bare").mkdir()
        torch.save(model.state_dict(), folder / "bare" / "pytorch_model.bin")
        found[name] = model, folder
    return found


def logits_of(theirs, idx):
    with torch.no_grad():
        return theirs(idx).logits


@pytest.mark.parametrize("name", ["wide", "deep"])
@pytest.mark.parametrize("form", ["safe", "safe/model.safetensors", "bare", "bare/pytorch_model.bin"])
def test_logits_equal_those_of_transformers(peers, name, form):
    theirs, folder = peers[name]
    idx = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(1))
    ours = GPT.from_pretrained(folder / form)
    assert (ours(idx)[0] - logits_of(theirs, idx)).abs().max() < 1e-4
    cropped = GPT.from_pretrained(folder / form, block_size=8, dropout=0.25)
    assert (cropped.config.block_size, cropped.config.dropout) == (8, 0.25)
    assert (cropped(idx[:, :8])[0] - logits_of(theirs, idx[:, :8])).abs().max() < 1e-4
    with pytest.raises(UserError, match="block_size"):
        GPT.from_pretrained(folder / form, block_size=64)


@pytest.fixture(scope="module")
def tuned(peers, prepared, command, tmp_path_factory):
    """A run that started from `wide`."""
    folder = tmp_path_factory.mktemp("tuned")
    flags = [*TINY, f"--data_dir={prepared.folder}", f"--out_dir={folder}"]
    done = command("train.py", "config/finetune.py", *flags, f"--init_from={peers['wide'][1] / 'safe'}")
    assert done.code == 0, done.err
    assert "1 layers, 2 heads, 128 channels, windows of 8 tokens" in done.out
    return folder, flags


def test_training_starts_from_the_weights_and_can_be_resumed(peers, tuned, command, read_losses, tmp_path):
    folder, flags = tuned
    rows = read_losses(folder)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    before, after = GPT.from_pretrained(peers["wide"][1] / "safe", block_size=8), GPT.load(folder / "best.pt")
    moved = max((a - b).abs().max() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert 0 < moved < 0.01
    shutil.copytree(folder, tmp_path / "out")
    more = [*flags, f"--out_dir={tmp_path / 'out'}", "--max_iters=6", "--init_from=resume"]
    done = command("train.py", "config/finetune.py", *more)
    assert done.code == 0, done.err
    assert read_losses(tmp_path / "out")[-1]["iter"] == 6


@pytest.mark.parametrize(
    "flag",
    [
        "--compact_vocab",
        "--output_bias",
        "--spelling=8",
        "--ngram_order=3",
        "--noise=0.1",
        "--block_size=64",
        "--init_from=gone",
    ],
)
def test_what_gpt2_cannot_be_is_refused(peers, prepared, command, the_error, tmp_path, flag):
    flags = [*TINY, f"--init_from={peers['wide'][1] / 'safe'}", f"--data_dir={prepared.folder}"]
    done = command("train.py", *flags, flag, f"--out_dir={tmp_path / 'out'}")
    told = the_error(done, "train.py")
    assert flag.strip("-").split("=")[0] in told or "gone" in told
    assert not (tmp_path / "out").exists()


def test_sampling_from_untouched_weights(peers, command, tmp_path):
    flags = [f"--init_from={peers['deep'][1] / 'bare'}", f"--out_dir={tmp_path}", "--num_samples=2"]
    done = command("sample.py", "--start=Tesla", "--max_new_tokens=5", *flags)
    assert done.code == 0, done.err
    assert done.out.count("Tesla") == 2 and "novelty" in done.err


@pytest.mark.parametrize("bias", [True, False])
def test_an_exported_folder_gives_transformers_the_same_logits(prepared, command, tmp_path, bias):
    train = [*TINY, f"--data_dir={prepared.folder}", f"--out_dir={tmp_path}", "--n_layer=1", "--n_head=2"]
    done = command("train.py", *train, "--n_embd=16", f"--bias={bias}", "--separate_tweets")
    assert done.code == 0, done.err
    folder = tmp_path / "exported" / "gpt"
    done = command("sample.py", f"--out_dir={tmp_path}", f"--export={folder}")
    assert done.code == 0, done.err
    ours, theirs = GPT.load(tmp_path / "best.pt"), transformers.GPT2LMHeadModel.from_pretrained(folder)
    idx = torch.randint(V - 1, (2, 8), generator=torch.Generator().manual_seed(1))
    assert (ours(idx)[0] - logits_of(theirs.eval(), idx)).abs().max() < 1e-4
    write = transformers.pipeline("text-generation", str(folder))
    text = write("<|endoftext|> Tesla", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    idx = torch.tensor([write.tokenizer("<|endoftext|> Tesla")["input_ids"]])
    assert idx.tolist() == [[V - 1, 11938]]
    assert text == write.tokenizer.decode(ours.generate(idx, 3, temperature=0)[0])
    assert [path.name for path in folder.parent.iterdir()] == ["gpt"]


def test_what_cannot_be_exported_is_refused(trained, command, the_error, tmp_path):
    done = command("sample.py", f"--out_dir={trained.folder}", f"--export={tmp_path / 'new'}")
    assert "--compact_vocab=False" in the_error(done, "sample.py")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_there_is_not_overwritten(peers, command, the_error, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    flags = [f"--init_from={peers['deep'][1] / 'safe'}", f"--export={tmp_path / 'mine'}"]
    assert "mine" in the_error(command("sample.py", *flags), "sample.py")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_download_that_fails_is_told_in_one_line(command, the_error, monkeypatch, prepared, tmp_path):
    def offline(url, **how):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    flags = ["--init_from=gpt2-xl", f"--data_dir={prepared.folder}", f"--out_dir={tmp_path / 'out'}"]
    told = the_error(command("train.py", *TINY, *flags), "train.py")
    assert "https://huggingface.co/openai-community/gpt2-xl" in told and "no route" in told


def test_a_damaged_config_is_told(peers, tmp_path):
    shutil.copytree(peers["deep"][1] / "safe", tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"n_embd": 32}))
    with pytest.raises(UserError, match="n_embd is 32"):
        GPT.from_pretrained(tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text("[")
    with pytest.raises(UserError, match="not a usable GPT-2"):
        GPT.from_pretrained(tmp_path / "gpt")


@pytest.mark.parametrize(
    "change",
    [
        {"tie_word_embeddings": False},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 1e-2},
        {"vocab_size": 50_300},
    ],
    ids=str,
)
def test_relatives_of_gpt2_are_refused(tmp_path, command, the_error, change):
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8, **change)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    told = the_error(command("sample.py", f"--init_from={tmp_path / 'gpt'}"), "sample.py")
    assert next(iter(change)) in told


def test_another_vocabulary_is_refused_without_a_config(tmp_path):
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=8, vocab_size=1_000)
    torch.save(transformers.GPT2LMHeadModel(config).state_dict(), tmp_path / "gpt.bin")
    with pytest.raises(UserError, match="1,000 tokens"):
        GPT.from_pretrained(tmp_path / "gpt.bin")
