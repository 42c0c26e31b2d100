"""What each part of the recipe is worth, measured on the development part of the training tweets.

    python tests/search.py                            # every variant below, one seed
    python tests/search.py full no_noise --seeds=3    # some of them
    python tests/search.py full -- --dropout=0.3      # with other flags for train.py

Needs data/processed.txt from prepare.py. The held-out tweets take no part: the next tenth
is the development part, and the rest is trained on.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from statistics import fmean

import numpy as np
import pandas as pd

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from prepare import END_OF_TEXT, encode_tweets, held_out, load_tokenizer

FULL_VOCABULARY = "--compact_vocab=False --spelling=0"
VARIANTS = {
    "full": "",
    "no_noise": "--noise=0",
    "no_dropout": "--dropout=0",
    "not_separate": "--separate_tweets=False --cut=0",
    "no_cut": "--cut=0",
    "no_tokens_before": "--n_before=0",
    "no_spelling": "--spelling=0",
    "full_vocabulary": FULL_VOCABULARY,
    "no_muon": "--muon=False",
    "plain_gpt": (
        f"{FULL_VOCABULARY} --separate_tweets=False --cut=0 --n_before=0 --noise=0 --muon=False "
        "--weight_decay=0.1 --epochs=20"
    ),
    "noise_0.3": "--noise=0.3",
    "noise_0.7": "--noise=0.7",
    "dropout_0.1": "--dropout=0.1",
    "dropout_0.3": "--dropout=0.3",
    "cut_0.1": "--cut=0.1",
    "before_1": "--n_before=1",
    "before_3": "--n_before=3",
    "block_32": "--block_size=32 --batch_size=64",
    "block_128": "--block_size=128 --batch_size=16",
    "layers_1": "--n_layer=1",
    "layers_3": "--n_layer=3",
    "layers_4": "--n_layer=4",
    "wide_192": "--n_embd=192",
    "wide_256": "--n_embd=256",
    "muon_decay_0.5": "--muon_decay=0.5",
    "muon_decay_2": "--muon_decay=2",
    "weight_decay_0.1": "--weight_decay=0.1",
    "weight_decay_2": "--weight_decay=2",
    "weight_decay_8": "--weight_decay=8",
    "learning_rate_2e-3": "--learning_rate=2e-3",
    "learning_rate_5e-3": "--learning_rate=5e-3",
    "epochs_30": "--epochs=30",
    "epochs_60": "--epochs=60",
    "spelling_4096": "--spelling=4096",
    "spelling_16384": "--spelling=16384",
}


def make_development_data(processed, folder):
    """Write train.bin, val.bin and meta.json as prepare.py would, with the development part as val."""
    tokenizer, parts = load_tokenizer(), {"train": [], "val": []}
    for tweet in processed.read_text(encoding="utf-8").split("\n")[:-1]:
        if not held_out(tweet):
            parts["val" if held_out(tweet, tenth=1) else "train"].append(tweet)
    for name, tweets in parts.items():
        ids = np.append(encode_tweets(tokenizer, tweets), END_OF_TEXT)
        ids.astype("<u2").tofile(folder / f"{name}.bin")
    n_bytes = sum(len(tweet.encode()) + 1 for tweet in parts["val"])
    (folder / "meta.json").write_text(json.dumps({"val_bytes": n_bytes}), encoding="utf-8")


def train(data_dir, flags, seed, verbose):
    """The table in loss.csv of one run, without the untrained model."""
    with tempfile.TemporaryDirectory() as out_dir:
        command = [sys.executable, "train.py", "config/elon.py", *flags]
        command += [f"--data_dir={data_dir}", f"--out_dir={out_dir}", f"--seed={seed}"]
        subprocess.run(command, stdout=None if verbose else subprocess.DEVNULL, cwd=ROOT, check=True)
        return pd.read_csv(f"{out_dir}/loss.csv")[1:]


def main():
    own, _, extra = " ".join(sys.argv[1:]).partition("-- ")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1, help="how many to take the mean of; 1")
    parser.add_argument("--data_dir", type=pathlib.Path, default="data")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(own.split())
    if unknown := set(options.variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        make_development_data(options.data_dir / "processed.txt", pathlib.Path(folder))
        print("| variant | bits per byte, best | at the end | seconds |\n|---|---|---|---|", flush=True)
        for name in options.variants:
            flags = [*VARIANTS[name].split(), *extra.split()]
            runs = [train(folder, flags, seed, options.verbose) for seed in range(options.seeds)]
            best = fmean(run["bits_per_byte"].min() for run in runs)
            last = fmean(run["bits_per_byte"].iloc[-1] for run in runs)
            seconds = fmean(run["elapsed_seconds"].iloc[-1] for run in runs)
            print(f"| {name} {extra} | {best:.4f} | {last:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
