"""`completion install` changes one line of the user's files, and `uninstall` takes it out again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loramerge.cli.main import main

SHELLS = {"bash": ".bashrc", "zsh": ".zshrc", "fish": ".config/fish/completions/loramerge.fish"}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder with a quote and a space in its name."""
    folder = tmp_path / "o'hara home"
    folder.mkdir()
    for name in ("ZDOTDIR", "XDG_CONFIG_HOME", "SHELL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(Path, "home", lambda: folder)
    monkeypatch.setenv("LORAMERGE_HOME", str(folder / "names"))
    return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_it_comes_and_goes(user: Path, shell: str) -> None:
    start = user / SHELLS[shell]
    own = b"alias x=y\nexport ODD=\xff" if shell != "fish" else None
    if own is not None:
        start.write_bytes(own)
    for _ in range(2):  # the second time changes nothing
        assert main(["completion", "install", "--shell", shell]) == 0
        text = start.read_bytes()
    if own is None:
        assert b"_LORAMERGE_COMPLETE=fish_complete" in text
    else:
        assert text.startswith(own + b"\n") and len(text.splitlines()) == 3
        script = (user / "names" / f"completion.{shell}").read_text()
        assert f"_LORAMERGE_COMPLETE={shell}_complete" in script
    assert main(["completion", "uninstall", "--shell", shell]) == 0
    assert not list((user / "names").glob("completion.*"))
    assert (not start.exists()) if own is None else start.read_bytes() == own + b"\n"
    assert main(["completion", "uninstall", "--shell", shell]) == 0


def test_the_shell_is_that_of_the_user(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert main(["completion", "show"]) == 0
    assert "compdef" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion", "install"]) == 2
    assert "there is no completion for tcsh" in capsys.readouterr().err
    monkeypatch.delenv("SHELL")
    assert main(["completion", "install"]) == 2
    assert not list(user.iterdir())


def test_bash_reads_it(user: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "install", "--shell", "bash"]) == 0
    found = subprocess.run(
        [bash, "--norc", "-c", '. "$HOME/.bashrc"; complete -p loramerge'],
        env={**os.environ, "HOME": str(user)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stderr == "" and "loramerge" in found.stdout


def test_a_link_stays_a_link(user: Path) -> None:
    """People keep their start files in a repository, and link to them."""
    kept = user / "dotfiles"
    kept.write_text("set -o vi\n")
    (user / ".bashrc").symlink_to(kept)
    assert main(["completion", "install", "--shell", "bash"]) == 0
    assert (user / ".bashrc").is_symlink() and "loramerge" in kept.read_text()
