"""Files and folders are there as a whole or not at all."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from rlhf_peft import atomic

from .children import killed_at, with_full_disk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("write", [atomic.write_text, atomic.write_output])
def test_a_full_disk_leaves_the_old_file(tmp_path, write):
    path = tmp_path / "x"
    write(path, "old")

    def work():
        try:
            write(path, "new" * 10_000)
        except OSError as error:
            return 7 if error.errno == errno.EFBIG and error.filename == str(path) else 8

    assert with_full_disk(work) == 7
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "x"
    for touch in range(1, 6):
        path.write_text("old")
        killed = killed_at(tmp_path, touch, lambda: atomic.write_text(path, "new"))
        # Opened, opened again to be put onto the disk, renamed; then the folder is put onto the disk.
        assert path.read_text() == ("old" if touch <= 3 else "new")
        assert killed == (touch <= 4)
        atomic.remove_leftovers(tmp_path)


def test_an_output_goes_through_a_link_and_into_a_device(tmp_path):
    (tmp_path / "real").write_text("old")
    os.chmod(tmp_path / "real", 0o600)
    (tmp_path / "link").symlink_to("real")
    atomic.write_output(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600
    (tmp_path / "null").symlink_to("/dev/null")
    atomic.write_output(tmp_path / "null", "nobody reads this")
    assert not os.path.isfile("/dev/null")
    if os.path.exists("/dev/full"):
        (tmp_path / "full").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device.*full"):
            atomic.write_output(tmp_path / "full", "x")


def test_an_own_file_never_goes_through_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "old" and not (tmp_path / "link").is_symlink()


def fill(path, **options):
    with atomic.folder(path, **options) as aside:
        (aside / "in").mkdir()
        (aside / "in" / "a").write_text("a")
        (aside / "b").write_text("b")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_filled_aside(tmp_path, there):
    path = tmp_path / "out"
    if there:
        path.mkdir()
    fill(path)
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*")) == ["b", "in", "in/a"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path, there):
    path = tmp_path / "out"
    if there:
        path.mkdir()
    with pytest.raises(RuntimeError), atomic.folder(path) as aside:
        (aside / "b").write_text("b")
        raise RuntimeError
    assert os.listdir(path if there else tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_writer_leaves_a_folder_that_can_be_filled(tmp_path, there):
    path = tmp_path / "out"
    if there:
        path.mkdir()
    touch, killed = 0, True
    while killed:
        touch += 1
        killed = killed_at(tmp_path, touch, lambda: fill(path))
        if killed:
            assert atomic.is_empty(path) or sorted(os.listdir(path)) == ["b", "in"]
            for left in [] if atomic.is_empty(path) else path.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert touch > 6
    fill(path) if atomic.is_empty(path) else None
    atomic.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["out"] and sorted(os.listdir(path)) == ["b", "in"]


def test_the_current_folder_stays_the_same_one(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    monkeypatch.chdir(path)
    fill(Path("."))
    assert sorted(os.listdir(".")) == ["b", "in"] and os.path.samefile(".", path)


def test_a_folder_takes_the_place_of_another_one(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        fill(path)
    assert os.listdir(path) == ["old"]
    fill(path, replace=True)
    assert os.listdir(tmp_path) == ["out"] and sorted(os.listdir(path)) == ["b", "in"]
    (path / "old").write_text("x")
    monkeypatch.chdir(path)
    fill(Path("."), replace=True)
    assert sorted(os.listdir(".")) == ["b", "in"] and os.path.samefile(".", path)


@pytest.mark.parametrize("current", [False, True])
def test_a_folder_that_cannot_be_replaced_is_there_as_before(tmp_path, monkeypatch, current):
    path, real = tmp_path / "out", os.replace
    path.mkdir()
    (path / "old").write_text("x")
    if current:
        monkeypatch.chdir(path)

    def failing(source, target):
        if Path(target) in (path, path / "in") and ".old." not in Path(source).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        fill(path, replace=True)
    assert os.listdir(path) == ["old"] and (path / "old").read_text() == "x"
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_replacement_leaves_the_old_folder_or_the_new_one_or_none(tmp_path):
    path, touch, killed, seen = tmp_path / "out", 0, True, set()
    while killed:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / "old").write_text("x")
        touch += 1
        killed = killed_at(tmp_path, touch, lambda: fill(path, replace=True))
        seen.add(tuple(sorted(os.listdir(path))) if path.exists() else ())
    assert {("old",), ("b", "in")} <= seen <= {("old",), ("b", "in"), ()}
    atomic.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    (tmp_path / f".out.{os.getppid()}.rlhf-peft.tmp").mkdir()
    fill(tmp_path / "out")
    assert len(os.listdir(tmp_path)) == 2


def test_what_a_killed_writer_has_left_goes_with_the_next_one(tmp_path):
    path = tmp_path / "x"
    (tmp_path / ".y.99999999.rlhf-peft.tmp").write_text("of another file")
    assert killed_at(tmp_path, 2, lambda: atomic.write_text(path, "new"))
    assert len(os.listdir(tmp_path)) == 2
    atomic.write_text(path, "new")
    assert sorted(os.listdir(tmp_path)) == [".y.99999999.rlhf-peft.tmp", "x"]


def test_a_process_may_have_the_number_of_the_one_that_was_killed(tmp_path):
    """As in a container, where the program always has the same one."""
    for name in ("out", "x"):
        (tmp_path / f".{name}.{os.getpid()}.rlhf-peft.tmp").mkdir()
    assert atomic.is_empty(tmp_path)
    fill(tmp_path / "out")
    atomic.write_text(tmp_path / "x", "new")
    assert sorted(os.listdir(tmp_path)) == ["out", "x"] and sorted(os.listdir(tmp_path / "out")) == [
        "b",
        "in",
    ]


def test_what_this_process_writes_now_is_left_alone(tmp_path):
    with atomic.folder(tmp_path / "one") as aside:
        atomic.remove_leftovers(tmp_path)
        fill(tmp_path / "two")
        (aside / "x").write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"] and os.listdir(tmp_path / "one") == ["x"]


@pytest.mark.parametrize("how", ["current", "link"])
def test_a_writer_killed_as_it_fills_a_folder_that_stays_can_begin_again(tmp_path, monkeypatch, how):
    path = tmp_path / "out"
    (tmp_path / "real").mkdir()
    path.symlink_to("real")
    if how == "current":
        monkeypatch.chdir(path)
    place = Path(".") if how == "current" else path
    for touch in range(1, 100):
        killed = killed_at(tmp_path, touch, lambda: fill(place))
        whole = all((path / name).is_file() for name in ("b", "in/a"))
        assert whole or atomic.is_empty(place)
        if not killed:
            break
        atomic.remove_leftovers(path) if path.is_dir() else None
        if not atomic.is_empty(place):
            shutil.rmtree(path / "in"), (path / "b").unlink()
        fill(place)  # the retry
        assert sorted(os.listdir(path)) == ["b", "in"] and path.is_symlink()
        shutil.rmtree(path / "in"), (path / "b").unlink()
    assert touch > 8 and sorted(os.listdir(tmp_path)) == ["out", "real"]


def test_a_name_that_leads_elsewhere_is_not_removed(tmp_path):
    aside = tmp_path / "out" / ".out.99999999.rlhf-peft.tmp"
    aside.mkdir(parents=True)
    (tmp_path / "precious").write_text("keep me")
    (aside / atomic.MOVED).write_text('["../precious", "..", ".", "", "a"]')
    (tmp_path / "out" / "a").mkdir()
    atomic.remove_leftovers(tmp_path / "out")
    assert (tmp_path / "precious").exists() and os.listdir(tmp_path / "out") == []
