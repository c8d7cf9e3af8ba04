"""Where a dry run is not possible, it says why."""

import pytest

from rlhf_peft.dryrun import shim
from rlhf_peft.dryrun.shim import DryRunUnavailable


def test_torch_must_not_be_imported_before(monkeypatch):
    monkeypatch.setattr(shim, "_loaded", [])
    with pytest.raises(DryRunUnavailable, match="torch is not imported yet"):
        shim.install()


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DryRunUnavailable, match=r"needs a C\+\+ compiler.*Install one"):
        shim.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DryRunUnavailable, match="none was found"):
        shim.library()
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(
        DryRunUnavailable, match=r"cannot compile it for torch .*: x\.cpp:1: error: no such header"
    ):
        shim.library()


def test_it_is_built_once(monkeypatch, tmp_path):
    built = []

    def compile_(target, folder):
        built.append(folder)
        target.write_bytes(b"")

    monkeypatch.setattr(shim, "_compile", compile_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shim.library() == shim.library()
    assert len(built) == 1 and len(list((tmp_path / "rlhf_peft" / "dryrun").iterdir())) == 1


def test_a_home_that_cannot_be_written_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setattr(shim, "_compile", lambda target, folder: target.write_bytes(b""))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = shim.library()
    assert path.is_file() and tmp_path not in path.parents
