import json

import pytest

from rlhf_peft import cli
from rlhf_peft.planning import gpus


def plan(capsys, *arguments):
    code = cli.execute(["--no-plugins", "plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_quickstart_fits_a_card_and_the_items_add_up(capsys):
    code, forecast = plan(capsys, "quickstart", "--gpu", "8GB")
    assert code == 0 and forecast["verdict"] == "fits" and forecast["remedies"] == []
    assert all(sum(phase["items"].values()) == phase["total"] for phase in forecast["phases"])
    assert forecast["peak"]["total"] == max(phase["total"] for phase in forecast["phases"])


def test_what_would_make_it_fit_is_found_by_planning_again(capsys, monkeypatch):
    _, roomy = plan(capsys, "quickstart", "--gpu", "8GB")
    peak = roomy["peak"]["total"]
    monkeypatch.setattr(gpus, "CONTEXT", 0)
    code, forecast = plan(capsys, "quickstart", "--gpu", f"{0.96 * peak / gpus.GB:.6f}GB")
    assert code == 1 and forecast["verdict"] == "does not fit" and forecast["remedies"]
    first = forecast["remedies"][0]
    assert first["fits"] and first["saves"] > 0
    _, changed = plan(capsys, "quickstart", *first["overrides"], "--gpu", f"{0.96 * peak / gpus.GB:.6f}GB")
    assert changed["peak"]["total"] == forecast["peak"]["total"] - first["saves"]
    assert changed["verdict"] != "does not fit"


def test_the_text_names_verdict_and_reserve(capsys):
    assert cli.execute(["--no-plugins", "plan", "quickstart", "--gpu", "RTX 4070"]) == 0
    assert "fits: " in (out := capsys.readouterr().out) and "RTX 4070 has 12.00 GB" in out


@pytest.mark.parametrize("gpu", ["RTX 9999", "much"])
def test_an_unknown_card_is_a_usage_error(capsys, gpu):
    assert cli.execute(["--no-plugins", "plan", "quickstart", "--gpu", gpu]) == 2
    assert "neither a size nor a known card" in capsys.readouterr().err


def test_a_model_that_fits_without_4_bits_is_told_so(capsys):
    note = "it fits without quantization too"
    assert cli.execute(["plan", "quickstart"]) == 0
    assert note in capsys.readouterr().out
    assert cli.execute(["validate", "quickstart", "--data"]) == 0
    assert note in capsys.readouterr().err
    for command in (["plan", "quickstart"], ["validate", "quickstart", "--data"]):
        assert cli.execute([*command, "model.quantization=none"]) == 0
        assert note not in "".join(capsys.readouterr())
