"""What each part of the recipe is worth, measured on the development part of the training tweets.

    python tests/search.py                         # every variant below, one seed
    python tests/search.py --only=noise --seeds=3  # those whose flags mention noise, and the preset
    python tests/search.py --epochs=50             # with other flags for train.py

Needs data/processed.txt from prepare.py. The held-out tweets take no part: the next tenth
is the development part, and the rest is trained on.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from prepare import END_OF_TEXT, encode_tweets, held_out, load_tokenizer

FULL_VOCABULARY = "--compact_vocab=False --spelling=0"
VARIANTS = [
    "",  # the preset
    # without a part
    *("--noise=0", "--dropout=0", "--cut=0", "--separate_tweets=False --cut=0"),
    *("--spelling=0", FULL_VOCABULARY, "--muon=False"),
    # a plain GPT
    f"{FULL_VOCABULARY} --separate_tweets=False --cut=0 --noise=0 --muon=False "
    "--weight_decay=0.1 --epochs=20",
    # with more or less of it
    *("--noise=0.3", "--noise=0.7", "--dropout=0.1", "--dropout=0.3", "--cut=0.1"),
    *("--noise_fall=0", "--noise_fall=0.5", "--spelling=4096", "--spelling=16384"),
    *("--block_size=32 --batch_size=64", "--block_size=128 --batch_size=16"),
    *("--n_layer=1", "--n_layer=3", "--n_layer=4", "--n_embd=192", "--n_embd=256"),
    *("--weight_decay=0.1", "--weight_decay=2", "--weight_decay=8"),
    *("--learning_rate=2e-3", "--learning_rate=5e-3", "--epochs=30", "--epochs=60"),
]


def make_development_data(processed, folder):
    """Write train.bin, val.bin and meta.json as prepare.py would, with the development part as val."""
    tokenizer, parts = load_tokenizer(), {"train": [], "val": []}
    for tweet in processed.read_text(encoding="utf-8").split("\n")[:-1]:
        if not held_out(tweet):
            parts["val" if held_out(tweet, tenth=1) else "train"].append(tweet)
    for name, tweets in parts.items():
        ids = np.append(encode_tweets(tokenizer, tweets), END_OF_TEXT)
        ids.astype("<u2").tofile(folder / f"{name}.bin")
    meta = {"val_bytes": sum(len(tweet.encode()) + 1 for tweet in parts["val"])}
    meta["train_sha256"] = hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def measure(*flags):
    """Bits per byte at best and at the end, and the seconds, of one run of train.py."""
    with tempfile.TemporaryDirectory() as out_dir:
        words = [sys.executable, "train.py", "config/elon.py", *flags, f"--out_dir={out_dir}"]
        subprocess.run(words, stdout=subprocess.DEVNULL, cwd=ROOT, check=True)
        rows = pd.read_csv(f"{out_dir}/loss.csv")[1:]  # without the untrained model
    return rows["bits_per_byte"].min(), rows["bits_per_byte"].iloc[-1], rows["elapsed_seconds"].iloc[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", default="", help="only variants with this in their flags, and the preset")
    parser.add_argument("--seeds", type=int, default=1, help="how many to take the mean of; 1")
    parser.add_argument("--data_dir", type=pathlib.Path, default="data")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        make_development_data(options.data_dir / "processed.txt", pathlib.Path(folder))
        print("| variant | bits per byte, best | at the end | seconds |\n|---|---|---|---|", flush=True)
        for flags in (flags for flags in VARIANTS if not flags or options.only in flags):
            words = [*extra, *flags.split(), f"--data_dir={folder}"]  # a variant's own flags win
            runs = [measure(*words, f"--seed={seed}") for seed in range(options.seeds)]
            best, last, seconds = np.mean(runs, axis=0)
            print(f"| {flags or 'preset'} | {best:.4f} | {last:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
