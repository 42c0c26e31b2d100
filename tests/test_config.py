"""Settings: what beats what, what is refused and how it is said; files that appear whole or not at all."""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest

import config
import prepare
import sample
import train
from config import UserError, errors_in_one_line, load_settings, setting, written_whole

SCRIPTS = {"prepare.py": prepare, "train.py": train, "sample.py": sample}


@dataclass(frozen=True)
class Settings:
    size: int = setting(8, "how large", within="[1, 100)", group="shape")
    rate: float = setting(0.5, "how fast", within="(0, 1]")
    fast: bool = setting(False, "whether to hurry")
    name: str = setting("plain", "what it is called")
    kind: str = setting("red", "which colour", choices=("red", "blue"))
    limit: int = setting(0, "the end; 0 for none", within="[0, inf)")
    files: tuple[str, ...] = setting((), "what to read")


def load(*argv):
    return load_settings(Settings, list(argv))


@pytest.fixture
def preset(tmp_path):
    """Write a preset and return its path."""

    def write(text):
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

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


# --- what is read ---------------------------------------------------------------------------------


def test_flags_beat_the_preset_and_the_preset_beats_the_defaults(preset):
    path = preset("size = 20\nname = 'preset'")
    assert load() == Settings()  # nothing typed at all
    assert load(path) == Settings(size=20, name="preset")
    assert load(path, "--size=30") == load("--size=30", path) == Settings(size=30, name="preset")
    assert load("--size", "30", path) == Settings(size=30, name="preset")


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--size=9"], {"size": 9}),
        (["--size", "9"], {"size": 9}),
        (["--rate=1"], {"rate": 1.0}),
        (["--rate", "1e-3"], {"rate": 0.001}),
        (["--name=a=b c"], {"name": "a=b c"}),
        (["--name", "two words"], {"name": "two words"}),
        (["--name="], {"name": ""}),
        (["--name=--size=3"], {"name": "--size=3"}),
        (["--fast"], {"fast": True}),
        (["--fast=True"], {"fast": True}),
        (["--fast=False"], {"fast": False}),
        (["--fast", "False"], {"fast": False}),
        (["--fast", "no", "--size=3"], {"fast": False, "size": 3}),
        (["--fast", "--size=3"], {"fast": True, "size": 3}),
        (["--limit=7"], {"limit": 7}),
        (["--files=a"], {"files": ("a",)}),
        (["--files=a", "--files", "b"], {"files": ("a", "b")}),
        (["--size=3", "--size=4"], {"size": 4}),
        (["--kind=blue"], {"kind": "blue"}),
    ],
)
def test_a_flag_is_read_as_its_type(argv, expected):
    settings = load(*argv)
    assert settings == Settings(**expected)
    assert all(type(getattr(settings, key)) is type(value) for key, value in expected.items())


def test_a_lone_boolean_does_not_swallow_the_preset(preset):
    assert load("--fast", preset("size = 20")) == Settings(fast=True, size=20)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rate = 1  # a whole number passes as a float", {"rate": 1.0}),
        ("files = ('a', 'b')", {"files": ("a", "b")}),
        (
            "files = ['a', 'b']",
            {"files": ("a", "b")},
        ),  # what is refused is said to be no list, so a list must do
        ("import math\n_half = 0.5\ndef f(): return 9\nsize = f()\nrate = _half", {"size": 9, "rate": 0.5}),
    ],
)
def test_a_preset_is_plain_python(preset, text, expected):
    settings = load(preset(text))
    assert settings == Settings(**expected)
    assert type(settings.rate) is float


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--siz=9"], ["'siz'", "did you mean 'size'"]),
        (["--siz", "9"], ["'siz'", "did you mean 'size'"]),
        (["--zzzzzz=9"], ["'zzzzzz'", "--help"]),
        (["--size"], ["size"]),
        (["--size=many"], ["size", "'many'", "whole number"]),
        (["--size=9.0"], ["size", "'9.0'", "whole number"]),
        (["--rate=fast"], ["rate", "'fast'", "number"]),
        (["--fast=maybe"], ["fast", "'maybe'", "True or False"]),
        (["--kind=green"], ["kind", "'green'", "red, blue"]),
        (["--size=0"], ["size", "0", "at least 1 and below 100"]),
        (["--size=100"], ["size", "100", "at least 1 and below 100"]),
        (["--rate=0"], ["rate", "above 0 and at most 1"]),
        (["--rate=nan"], ["rate", "nan", "above 0 and at most 1"]),
        (["--rate=inf"], ["rate", "inf", "above 0 and at most 1"]),
        (["--limit=-1"], ["limit", "-1", "at least 0"]),
        (["no_such_preset.py"], ["no_such_preset.py", "not a file"]),
        (["tweets.csv"], ["'tweets.csv'", "a .py file", "--size=…"]),
        (["size=9"], ["'size=9'", "--size=…"]),
        (["--size", "=", "9"], ["'9'", "without spaces"]),
        (["--size=9", "9"], ["'9'", "without spaces"]),
        (["config/tiny.py", "config/elon.py"], ["'config/elon.py'", "one preset"]),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_named_with_the_fix(error_of, argv, words):
    error = error_of(*argv)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "text, words",
    [
        ("siz = 9", ["'siz'", "did you mean 'size'"]),
        ("size = 'nine'", ["size", "'nine'", "whole number"]),
        ("size = 9.0", ["size", "9.0", "whole number"]),
        ("size = True", ["size", "True", "whole number"]),
        ("fast = 1", ["fast", "1", "True or False"]),
        ("size = None", ["size", "None"]),
        ("rate = float('nan')", ["rate", "nan", "above 0 and at most 1"]),
        ("size = 100", ["size", "at least 1 and below 100"]),
        ("kind = 'green'", ["kind", "'green'", "red, blue"]),
        ("files = 'a.csv'", ["files", "'a.csv'"]),
        ("files = (1, 2)", ["files"]),
        ("size = 9\nsize = = 3", ["mine.py", "line 2", "SyntaxError"]),
        ("size = 9\n\nsize = 1 / 0", ["mine.py", "line 3", "ZeroDivisionError"]),
        ("def f():\n    raise KeyError('gone')\nf()", ["mine.py", "KeyError", "gone"]),
        ("size = 9\nraise SystemExit('enough')", ["mine.py", "line 2", "enough"]),
        ("import no_such_module", ["mine.py", "line 1", "no_such_module"]),
    ],
)
def test_a_wrong_preset_is_named_with_the_place(error_of, preset, text, words):
    error = error_of(preset(text))
    assert all(word in error for word in words), error


def test_the_preset_is_checked_though_a_flag_overrides_it(error_of, preset):
    assert "'siz'" in error_of(preset("siz = 9"), "--size=9")


def test_a_file_that_is_no_preset_is_not_run(error_of, tmp_path):
    (tmp_path / "tweets.txt").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "unexpected argument" in error_of(str(tmp_path / "tweets.txt"))
    assert not (tmp_path / "ran").exists()


# --- the edges that every script uses -------------------------------------------------------------


@pytest.mark.parametrize(
    "error, text",
    [(UserError("two\nlines"), "two lines"), (FileNotFoundError(2, "No such file", "a"), "'a'")],
)
def test_mistakes_and_file_errors_become_one_line(capsys, monkeypatch, error, text):
    monkeypatch.setattr("sys.argv", ["/some/where/x.py"])
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error
    err = capsys.readouterr().err
    assert (end.value.code, err.count("\n")) == (2, 1)
    assert err.startswith("x.py: error: ") and text in err


def test_ctrl_c_ends_a_script_in_one_word(capsys):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise KeyboardInterrupt
    assert (end.value.code, capsys.readouterr().err.split()) == (130, ["stopped"])


def test_a_command_to_paste_names_the_files_as_the_user_did(monkeypatch):
    monkeypatch.setattr("sys.argv", ["../some where/prepare.py", "--input=x"])
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "-X", "utf8"])
    words = [".venv/bin/python", "../some where/train.py", "--out_dir=my run"]
    assert shlex.split(config.command("train.py", "--out_dir=my run")) == words


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="cannot write"), written_whole(tmp_path / "file" / "x"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        raise ZeroDivisionError


def test_a_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with written_whole(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()  # UTF-8 and \n on every system
    with written_whole(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, OSError(28, "No space left")])
@pytest.mark.parametrize("existed", [True, False])
def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path, error, existed):
    path = tmp_path / "file.txt"
    if existed:
        path.write_text("old")
    with (
        pytest.raises((ZeroDivisionError, KeyboardInterrupt, OSError, UserError)),
        written_whole(path) as file,
    ):
        file.write("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existed


# --- the scripts ----------------------------------------------------------------------------------


def squeezed(text):
    """Text without white space: where help breaks its lines depends on the terminal's width."""
    return "".join(text.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_setting_with_default_and_range(script, command):
    done = command(script, "--help")
    assert done.code == 0 and done.err == ""
    for field in dataclasses.fields(SCRIPTS[script].Settings):
        default = "…" if field.default in ("", ()) else field.default
        assert f"  --{field.name} {default}" in done.out
        told = field.metadata["help"]
        if field.metadata["choices"]:
            told += f"({','.join(field.metadata['choices'])})"
        elif field.metadata["within"]:
            low, high = field.metadata["within"][1:-1].split(", ")
            told += f"({'at least' if field.metadata['within'][0] == '[' else 'above'} {low}"
            told += ")" if high == "inf" else " and "
        assert squeezed(told) in squeezed(done.out)


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["train.py", "--help"], 0, "--batch_size"),
        (["train.py", "--batch_siz=3"], 2, "did you mean 'batch_size'?"),
        (["train.py", "config/tiny.py", "--dropout=nan"], 2, "at least 0 and below 1"),
        (["sample.py", "--temperature", "hot"], 2, "'hot' is not a number"),
        (["prepare.py", "--input=no/such/file.csv"], 2, "no such file: no/such/file.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_is_not_imported_for_an_answer_that_needs_none(words, code, text, shell):
    done = shell("-X", "importtime", *words)  # Python names each module that it imports
    told = [line for line in done.err.splitlines() if not line.startswith("import time:")]
    modules = {line.split("|")[-1].strip() for line in done.err.splitlines()} - set(told)
    assert "argparse" in modules and "torch" not in modules
    assert done.code == code
    assert text in (done.out if code == 0 else told[0])
    if code:
        assert len(told) == 1 and told[0].startswith(f"{words[0]}: error: ")


README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TYPED = [  # the words after "python" in the lines of the scripts' docstrings that show what to type
    shlex.split(line, comments=True)[1:]
    for module in SCRIPTS.values()
    for line in module.__doc__.splitlines()
    if line.startswith("    python ")
]
SHOWN = [  # and in those of the README, on lines of their own, as headings or in the text
    shlex.split(line, comments=True)[1:]
    for line in re.findall(r"(?:^|`)(python (?:prepare|train|sample)\.py[^`\n]*)", README, re.MULTILINE)
    if "--help" not in line
]


def test_a_reader_who_has_seen_enough_is_no_error(repo):
    command = [sys.executable, "prepare.py", "--input=data/sample_tweets.csv", "--dry_run"]
    process = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_docstring_shows_commands(script):
    assert sum(words[0] == script for words in TYPED) >= 3


@pytest.mark.parametrize("words", [*TYPED, *SHOWN], ids=" ".join)
def test_the_commands_in_docstrings_and_readme_are_accepted(words, monkeypatch, repo):
    monkeypatch.chdir(repo)
    load_settings(SCRIPTS[words[0]].Settings, words[1:])


def test_the_readmes_links_point_at_the_lines_that_they_name(repo):
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README)
    assert len(links) > 10
    for name, file, line in links:
        found = (repo / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"\s*(class|def) {name}\b", found), f"{file}:{line} is not {name}"
    for path in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (repo / path).exists(), path


def test_every_preset_fits_train(monkeypatch, repo):
    monkeypatch.chdir(repo)
    presets = sorted(path for path in (repo / "config").glob("*.py") if path.name != "__init__.py")
    assert {"elon.py", "tiny.py"} <= {path.name for path in presets}
    for path in presets:
        assert load_settings(train.Settings, [str(path)]) != train.Settings()


def test_the_cards_line_is_the_reference_run(monkeypatch, repo):
    monkeypatch.chdir(repo)
    presets = [["config/elon.py"], ["config/elon.py", "--batch_size=32"]]
    first, second = (load_settings(train.Settings, argv) for argv in presets)
    assert first == second
