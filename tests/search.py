"""What each part of the recipe is worth, measured on the development part of the training tweets.

    python tests/search.py                            # every variant below, one seed
    python tests/search.py full no_noise --seeds=3    # some of them
    python tests/search.py full -- --dropout=0.2      # with other flags for train.py

Needs data/processed.txt from prepare.py. The held-out tweets take no part: the tweets with
10 <= crc32(key) % 100 < 20 are the development part, and training uses those from 20 on.
"""

import argparse
import contextlib
import csv
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import prepare  # noqa: E402

PLAIN = "--spelling=0 --ngram_order=0 --noise=0"
VARIANTS = {
    "full": "",
    "no_noise": "--noise=0",
    "not_separate": "--separate_tweets=False",
    "no_spelling": "--spelling=0",
    "no_ngrams": "--ngram_weight=0.0001",
    "no_average": "--average_decay=0",
    "weight_decay_0.1": "--weight_decay=0.1",
    "plain": PLAIN,
    "plain_full_vocabulary": f"{PLAIN} --compact_vocab=False",
    "plain_gpt": f"{PLAIN} --compact_vocab=False --output_bias=False --weight_decay=0.1 --average_decay=0",
    "noise_0.3": "--noise=0.3",
    "noise_0.7": "--noise=0.7",
    "dropout_0.1": "--dropout=0.1",
    "dropout_0.3": "--dropout=0.3",
    "ngram_weight_0.3": "--ngram_weight=0.3",
    "ngram_weight_0.5": "--ngram_weight=0.5",
    "ngram_order_3": "--ngram_order=3",
    "block_32": "--block_size=32 --batch_size=64",
    "block_128": "--block_size=128 --batch_size=16",
    "layers_1": "--n_layer=1",
    "layers_4": "--n_layer=4",
    "wide_192": "--n_embd=192",
    "wide_256": "--n_embd=256",
    "weight_decay_2": "--weight_decay=2",
    "weight_decay_8": "--weight_decay=8",
    "learning_rate_2e-3": "--learning_rate=2e-3",
    "learning_rate_5e-3": "--learning_rate=5e-3",
    "buckets_4096": "--spelling=4096",
    "buckets_16384": "--spelling=16384",
}


def make_development_data(processed, folder):
    """Write train.bin, val.bin and meta.json as prepare.py would, with the development part as val."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, meta = prepare.load_tokenizer(), {}
    parts = {"train": [], "val": []}
    for tweet in processed.read_text(encoding="utf-8").split("\n")[:-1]:
        if not prepare.held_out(tweet):
            parts["val" if prepare.percentile(tweet) < 2 * prepare.VAL_PERCENT else "train"].append(tweet)
    for name, tweets in parts.items():
        with open(folder / f"{name}.bin", "wb") as file:
            split = prepare.Split(file, tokenizer)
            split.add(tweets)
            meta |= {f"{name}_{what}": number for what, number in split.finish().items()}
        if name == "train":
            meta["train_token_counts"] = {i: int(n) for i, n in enumerate(split.counts) if n}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def train(data_dir, flags, seed, log):
    """The rows of loss.csv of one run."""
    with tempfile.TemporaryDirectory() as out_dir:
        command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "config/elon.py"), *flags]
        command += [f"--data_dir={data_dir}", f"--out_dir={out_dir}", f"--seed={seed}"]
        done = subprocess.run(command, stdout=log, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.stderr)
        with open(pathlib.Path(out_dir) / "loss.csv", encoding="utf-8") as file:
            return list(csv.DictReader(io.StringIO(file.read())))


def main():
    own, _, extra = " ".join(sys.argv[1:]).partition("-- ")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1, help="how many to take the mean of; 1")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(own.split())
    if unknown := set(options.variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        log = None if options.verbose else stack.enter_context(open("/dev/null", "w"))
        make_development_data(pathlib.Path(options.data_dir) / "processed.txt", pathlib.Path(folder))
        print("| variant | bits per byte, best | at the end | seconds |\n|---|---|---|---|", flush=True)
        for name in options.variants:
            best, last, seconds = [], [], []
            for seed in range(options.seeds):
                rows = train(folder, [*VARIANTS[name].split(), *extra.split()], seed, log)
                best.append(min(float(row["bits_per_byte"]) for row in rows))
                last.append(float(rows[-1]["bits_per_byte"]))
                seconds.append(float(rows[-1]["elapsed_seconds"]))
            figures = " | ".join(f"{statistics.mean(f):.4f}" for f in (best, last))
            print(f"| {name} {extra} | {figures} | {statistics.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
