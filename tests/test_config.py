"""Settings: what beats what, what is refused and how it is said; files that appear whole or not at all."""

import dataclasses
import math
import os
import re
import subprocess
import sys

import pytest

import prepare
import sample
import train
from config import UserError, load_settings, written_whole

SCRIPTS = {"prepare.py": prepare, "train.py": train, "sample.py": sample}


def test_flags_beat_the_preset_and_the_preset_beats_the_defaults(tmp_path):
    def load(*argv):
        return load_settings(train.Settings, list(argv))

    path = str(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("'what for'\nn_embd = 20  # large\ndtype = 'float32'\ndropout = 0")
    whole = train.Settings(n_embd=20, dtype="float32", dropout=0.0)
    assert load() == train.Settings()  # nothing typed at all
    assert load(path) == whole and type(load(path).dropout) is float
    assert load(path, "--n_embd=30") == load("--n_embd", "30", path) == dataclasses.replace(whole, n_embd=30)
    assert load("--muon", path) == dataclasses.replace(whole, muon=True)  # the preset is no value of it
    (tmp_path / "mine.py").write_text("max_iters = 60\nepochs = 9")
    assert load(path, "--epochs=2") == train.Settings(epochs=2.0)  # without the preset's max_iters
    assert load(path, "--epochs=2", "--max_iters=5") == train.Settings(epochs=2.0, max_iters=5)
    (tmp_path / "mine.py").write_text("input = ['a', 'b']")
    assert load_settings(prepare.Settings, [path]).input == ("a", "b")


@pytest.mark.parametrize(
    "module, argv, expected",
    [
        (sample, ["--min_p", "1e-3", "--start=a=b c"], {"min_p": 0.001, "start": "a=b c"}),
        (sample, ["--start=--seed=3", "--interactive=yes"], {"start": "--seed=3", "interactive": True}),
        (prepare, ["--dry_run", "a.csv", "--user=me"], {"dry_run": True, "input": ("a.csv",), "user": "me"}),
        (prepare, ["--input=a", "--input", "b", "c"], {"input": ("a", "b", "c")}),
    ],
)
def test_a_flag_is_read_as_its_type_and_other_words_are_inputs(module, argv, expected):
    settings = load_settings(module.Settings, argv, rest="input" if module is prepare else None)
    assert settings == module.Settings(**expected)
    assert all(type(getattr(settings, key)) is type(value) for key, value in expected.items())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_refuses_what_it_cannot_be_and_names_the_fix(script, command, the_error):
    for field in dataclasses.fields(SCRIPTS[script].Settings):
        name, about = field.name, field.metadata
        wrong = {f"--{name}x=1": f"did you mean '{name}'?"}
        if type(field.default) in (int, float, bool):
            wrong[f"--{name}=mauve"] = "'mauve' is not"
        if about["choices"]:
            wrong[f"--{name}=mauve"] = f"'mauve' is not one of {', '.join(about['choices'])}"
        if about["low"] > -math.inf:
            wrong[f"--{name}={about['low'] - 1}"] = f" {about['low']} "
        if about["high"] < math.inf:
            wrong[f"--{name}={about['high'] + 1}"] = f"and {about['high']}"
        for flag, words in wrong.items():
            error = the_error(command(script, flag), script)
            assert name in error and words in error, error


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--zzzzzz=9", "'zzzzzz'.*--help"),
        ("--seed", "seed.* --seed=…"),
        ("--seed --muon", "seed.* --seed=…"),
        ("--dropout=nan", "dropout.*nan.*between 0 and 0.99"),
        ("no_such_preset.py", "no_such_preset.py.*No such file"),
        ("tweets.csv", "'tweets.csv'.*a .py file"),
    ],
)
def test_a_wrong_flag_is_named_with_the_fix(command, the_error, flags, words):
    assert re.search(words, the_error(command("train.py", *flags.split()), "train.py"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("sed = 9", "line 1.*'sed'.*did you mean 'seed'"),
        ("\nseed = -1", "mine.py, line 2.*seed.*-1.*between 0 and"),
        ("muon = 1", "muon.*1.*True or False"),
        ("seed = 9\nseed = = 3", "mine.py.*line 2"),
        ("seed = 9\n\nseed = open('RAN', 'w')", "mine.py.*line 3.*name = value"),
        ("import os\nos.mkdir('RAN')", "mine.py.*line 1.*name = value"),
    ],
)
def test_a_wrong_preset_is_told_and_never_run(command, the_error, tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text.replace("RAN", (tmp_path / "ran").as_posix()))
    assert re.search(words, the_error(command("train.py", tmp_path / "mine.py"), "train.py"))
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_is_told_after_settings_were_read_and_ends_at_once_until_then(shell):
    code = """if True:
        import config, prepare, signal
        config.load_settings(prepare.Settings, [])
        try:
            with config.errors_in_one_line():
                signal.raise_signal(signal.SIGINT)
        except SystemExit as end:
            print(end.code, flush=True)
        config.load_settings(prepare.Settings, [])
        signal.raise_signal(signal.SIGINT)  # while torch is imported"""
    done = shell("-c", code)
    assert (done.out, done.err, done.code) == ("130\n", "\nstopped\n", -2)


def test_a_file_appears_whole_with_its_folders_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "new" / "folder" / "file"
    with written_whole(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()  # UTF-8 and \n on every system
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    for where in ("fsync", "replace"):
        monkeypatch.setattr(os, where, full)
        with pytest.raises(UserError, match=r"cannot write .*No space left"), written_whole(path) as file:
            file.write("half")
        monkeypatch.undo()
    assert [p.read_text(encoding="utf-8") for p in path.parent.iterdir()] == ["é\n"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_one_screen_with_a_line_for_each_setting(script, command):
    done = command(script, "--help")
    assert (done.code, done.err) == (0, "") and len(done.out.splitlines()) <= 50
    for field in dataclasses.fields(SCRIPTS[script].Settings):
        default = "" if field.default in ("", ()) else field.default
        assert re.search(rf"^  --{field.name}={re.escape(str(default))} .*\w", done.out, re.MULTILINE)


@pytest.mark.parametrize("words", ["train.py --help", "sample.py --seed=x", "prepare.py --input=gone"])
def test_torch_is_not_imported_for_an_answer_that_needs_none(words, shell):
    done = shell("-X", "importtime", *words.split())  # Python names each module that it imports
    modules = {line.split("|")[-1].strip() for line in done.err.splitlines()}
    assert "dataclasses" in modules and "torch" not in modules
    assert done.code == (0 if "--help" in words else 2)


def test_a_reader_who_has_seen_enough_is_no_error(repo):
    words = [sys.executable, "prepare.py", "--input=data/sample_tweets.csv", "--dry_run"]
    process = subprocess.Popen(words, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.communicate()[1] == b"" and process.returncode == 1
