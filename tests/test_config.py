"""Settings: what beats what, what is refused and how it is said; files that appear whole or not at all."""

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

import prepare
import sample
import train
from config import UserError, errors_in_one_line, load_settings, setting, written_whole

SCRIPTS = {"prepare.py": prepare, "train.py": train, "sample.py": sample}


@dataclass(frozen=True)
class Settings:
    size: int = setting(8, "how large", low=1, high=99, group="shape")
    rate: float = setting(0.5, "how fast", low=0, high=1)
    fast: bool = setting(False, "whether to hurry")
    name: str = setting("plain", "what it is called")
    kind: str = setting("red", "which colour", choices=("red", "blue"))
    files: tuple[str, ...] = setting((), "what to read")


def load(*argv, rest=None):
    return load_settings(Settings, list(argv), rest)


@pytest.fixture
def preset(tmp_path):
    """Write a preset and return its path."""

    def write(text):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return str(tmp_path / "mine.py")

    return write


@pytest.fixture
def error_of(capsys, monkeypatch):
    """The one line with which load(*argv) ends."""
    monkeypatch.setattr("sys.argv", ["folder/x.py"])

    def run(*argv):
        with pytest.raises(SystemExit) as end:
            load(*argv)
        out, err = capsys.readouterr()
        assert (end.value.code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("x.py: error: ")
        return err

    return run


def test_flags_beat_the_preset_and_the_preset_beats_the_defaults(preset):
    path = preset("'''what it is for'''\nsize = 20  # large\nname = 'preset'\nrate = 1\nfiles = ['a', 'b']")
    whole = Settings(size=20, name="preset", rate=1.0, files=("a", "b"))
    assert load() == Settings()  # nothing typed at all
    assert load(path) == whole and type(load(path).rate) is float
    assert load(path, "--size=30") == load("--size", "30", path) == dataclasses.replace(whole, size=30)
    assert load("--fast", path) == dataclasses.replace(whole, fast=True)  # the preset is no value of it


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--size=9"], {"size": 9}),
        (["--size", "9"], {"size": 9}),
        (["--rate", "1e-3"], {"rate": 0.001}),
        (["--name=a=b c"], {"name": "a=b c"}),
        (["--name=--size=3"], {"name": "--size=3"}),
        (["--fast"], {"fast": True}),
        (["--fast", "no", "--size=3"], {"fast": False, "size": 3}),
        (["--fast", "--kind=blue"], {"fast": True, "kind": "blue"}),
        (["--files=a", "--files", "b", "c"], {"files": ("a", "b", "c")}),
    ],
)
def test_a_flag_is_read_as_its_type(argv, expected):
    settings = load(*argv, rest="files")
    assert settings == Settings(**expected)
    assert all(type(getattr(settings, key)) is type(value) for key, value in expected.items())


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--siz=9"], ["'siz'", "did you mean 'size'"]),
        (["--zzzzzz=9"], ["'zzzzzz'", "--help"]),
        (["--size"], ["size", "--size=…"]),
        (["--size=9.0"], ["size", "'9.0'", "whole number"]),
        (["--rate=fast"], ["rate", "'fast'", "number"]),
        (["--fast=maybe"], ["fast", "'maybe'", "True or False"]),
        (["--kind=green"], ["kind", "'green'", "red, blue"]),
        (["--size=0"], ["size", "0", "between 1 and 99"]),
        (["--rate=nan"], ["rate", "nan", "between 0 and 1"]),
        (["--rate=inf"], ["rate", "inf", "between 0 and 1"]),
        (["no_such_preset.py"], ["no_such_preset.py", "does not exist"]),
        (["tweets.csv"], ["'tweets.csv'", "a .py file"]),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_named_with_the_fix(error_of, argv, words):
    error = error_of(*argv)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "text, words",
    [
        ("siz = 9", ["line 1", "'siz'", "did you mean 'size'"]),
        ("size = 'nine'", ["size", "'nine'", "whole number"]),
        ("fast = 1", ["fast", "1", "True or False"]),
        ("size = 9\nsize = = 3", ["mine.py", "line 2"]),
        ("size = 9\n\nsize = open('ran', 'w')", ["mine.py", "line 3", "name = value"]),
        ("import os\nos.mkdir('ran')", ["mine.py", "line 1", "name = value"]),
    ],
)
def test_a_wrong_preset_is_told_and_never_run(error_of, preset, monkeypatch, tmp_path, text, words):
    monkeypatch.chdir(tmp_path)
    error = error_of(preset(text))
    assert all(word in error for word in words), error
    assert not (tmp_path / "ran").exists()


# --- the edges that every script uses -------------------------------------------------------------


def test_mistakes_become_one_line_and_bugs_keep_their_traceback(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/where/x.py"])
    for error, code, text in (
        (UserError("two\nlines\x1b[2J"), 2, "x.py: error: two lines\\x1b[2J\n"),
        (FileNotFoundError(2, "No such file", "a"), 2, "x.py: error: [Errno 2] No such file: 'a'\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ):
        with pytest.raises(SystemExit) as end, errors_in_one_line():
            raise error
        assert (end.value.code, capsys.readouterr().err) == (code, text)
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        raise ZeroDivisionError


def test_a_file_appears_whole_with_its_folders_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "new" / "folder" / "file"
    with written_whole(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()  # UTF-8 and \n on every system
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), written_whole(path) as file:
            file.write("half")
            raise error
    for where in ("fsync", "replace"):
        monkeypatch.setattr(os, where, full)
        with pytest.raises(UserError, match=r"cannot write .*No space left"), written_whole(path) as file:
            file.write("half")
        monkeypatch.undo()
    with pytest.raises(OSError), written_whole(path / "x"):  # a file where a folder should be
        pass
    assert [p.read_text(encoding="utf-8") for p in path.parent.iterdir()] == ["é\n"]


# --- the scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_one_screen_with_a_line_for_each_setting(script, command):
    done = command(script, "--help")
    assert (done.code, done.err) == (0, "") and len(done.out.splitlines()) <= 50
    for field in dataclasses.fields(SCRIPTS[script].Settings):
        default = "" if field.default in ("", ()) else field.default
        (line,) = [line for line in done.out.splitlines() if f"  --{field.name}={default} " in line]
        assert line.endswith(field.metadata["help"])


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["train.py", "--help"], 0, "--batch_size"),
        (["train.py", "--batch_siz=3"], 2, "did you mean 'batch_size'?"),
        (["sample.py", "--temperature", "hot"], 2, "'hot' is not a number"),
        (["prepare.py", "--input=no/such/file.csv"], 2, "no/such/file.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_is_not_imported_for_an_answer_that_needs_none(words, code, text, shell):
    done = shell("-X", "importtime", *words)  # Python names each module that it imports
    told = [line for line in done.err.splitlines() if not line.startswith("import time:")]
    modules = {line.split("|")[-1].strip() for line in done.err.splitlines()} - set(told)
    assert "dataclasses" in modules and "torch" not in modules
    assert (done.code, len(told)) == (code, 1 if code else 0)
    assert text in (told[0] if code else done.out)


def test_a_reader_who_has_seen_enough_is_no_error(repo):
    words = [sys.executable, "prepare.py", "--input=data/sample_tweets.csv", "--dry_run"]
    process = subprocess.Popen(words, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()
