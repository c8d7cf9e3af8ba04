"""Code of others that is imported: it is named when it hangs, cannot end the program, and floods no terminal."""

import os
import signal
import threading
import time

import pytest

from rlhf_peft import foreign

WHO, REMEDY = "plugin x (dist-x 1.2)", "Leave it out: --no-plugins"


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    monkeypatch.setattr(foreign, "threads", [])


def importing():
    return foreign.importing(WHO, REMEDY)


def test_what_is_printed_comes_out_on_stderr(capfd):
    with importing():
        print("from Python")
        os.write(1, b"from C\n")
        os.system("echo from a child")
    out, err = capfd.readouterr()
    assert out == "" and set(err.splitlines()) == {"from Python", "from C", "from a child"}


def test_no_secret_is_shown(capfd, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "sentinel-0815-4711")
    with importing():
        os.write(1, b"with sentinel-0815-4711\n")
    assert capfd.readouterr().err == "with ***\n"


def test_megabytes_are_cut_off(capfd):
    with importing():
        os.write(1, b"x" * 5_000_000)
        os.write(2, b"y" * 3_000_000)
    out, err = capfd.readouterr()
    assert out == "" and len(err) < foreign.PRINTED + 200
    assert err.endswith(f"{WHO} printed 8,000,000 bytes as it was imported; the rest is left out.\n")


def test_closed_handles_are_open_again(capfd):
    with importing():
        os.close(1)
        os.close(2)
    print("still there")
    assert capfd.readouterr().out == "still there\n"


def test_a_slow_import_is_named_with_a_way_out(capfd, monkeypatch):
    monkeypatch.setattr(foreign, "PATIENCE", 0.1)
    with importing():
        time.sleep(0.4)
    assert f"{WHO} has been importing for 0.1 s, and may take 120. {REMEDY}" in capfd.readouterr().err
    with importing():
        pass
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def stubborn():
    """Catches what it can, as a loop that tries again does."""
    for _ in range(2):
        try:
            time.sleep(30)
        except Exception:
            continue


@pytest.mark.parametrize("code", [lambda: time.sleep(30), stubborn])
def test_an_import_that_hangs_gets_an_error(monkeypatch, code):
    monkeypatch.setattr(foreign, "IMPORT_LIMIT", 0.2)
    monkeypatch.setattr(foreign, "REPEAT", 0.2)
    begun = time.monotonic()
    try:
        with importing():
            code()
    except TimeoutError as error:
        assert "took longer than 0.2 s" in str(error)
    assert time.monotonic() - begun < 5
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("end", [lambda: os._exit(0), lambda: os.abort()])
def test_the_program_goes_on(end):
    with pytest.raises(foreign.ProcessExit, match="which would end the run"), importing():
        end()


def test_an_interruption_says_what_was_interrupted():
    with pytest.raises(KeyboardInterrupt) as caught, importing():
        raise KeyboardInterrupt
    assert caught.value.__notes__ == [f"{WHO} was being imported. {REMEDY}"]


def test_threads_that_last_are_known():
    ends = threading.Event()
    with importing():
        threading.Thread(target=ends.wait, name="mine").start()
        threading.Thread(target=ends.wait, daemon=True).start()
    assert [(who, thread.name) for who, thread in foreign.lasting()] == [(WHO, "mine")]
    ends.set()
    for _, thread in foreign.threads:
        thread.join()
    assert foreign.lasting() == []
