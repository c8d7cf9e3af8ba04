"""`rlhf-peft recipes`: list, show and copy; and the page of all keys."""

import json
from pathlib import Path

import yaml

from rlhf_peft import cli
from rlhf_peft.recipe import document, shipped

from .cli_support import ROOT


def test_recipes_show_prints_the_file(capsys):
    for name in shipped.names():
        assert cli.execute(["recipes", "show", name]) == 0
        assert capsys.readouterr().out == shipped.path(name).read_text()


def test_recipes_list_as_json(capsys):
    assert cli.execute(["recipes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == shipped.names()
    assert all(row["summary"] and Path(row["path"]).is_file() for row in rows)


def test_recipes_copy_never_overwrites_unasked(here, capsys):
    name = shipped.names()[0]
    assert cli.execute(["recipes", "copy", name, "new/mine", "seed=99"]) == 0
    out, err = capsys.readouterr()
    assert out == "new/mine.yaml\n"
    assert err == "next: rlhf-peft run new/mine.yaml\n"
    copied = here / "new" / "mine.yaml"
    assert yaml.safe_load(copied.read_text())["seed"] == 99
    assert copied.read_text().startswith("#")
    assert cli.execute(["recipes", "copy", name, "new/mine.yaml"]) == 2
    assert "Replace it with --force" in capsys.readouterr().err
    assert yaml.safe_load(copied.read_text())["seed"] == 99
    assert cli.execute(["recipes", "copy", name, "new/mine.yaml", "--force"]) == 0
    body = shipped.text(name)
    assert copied.read_text() == f"# From the recipe {name}.\n{body[body.index('version: 1') :]}"
    assert cli.execute(["recipes", "copy", name, "new"]) == 0
    assert (here / "new" / f"{name}.yaml").exists()
    assert cli.execute(["recipes", "copy", name, "other.yaml", "sed=1"]) == 2
    assert not (here / "other.yaml").exists()


def test_the_page_of_all_keys_is_up_to_date():
    from rlhf_peft.registry import Registry
    from rlhf_peft.stages import documentation

    registry = Registry.load(no_plugins=True)
    page = document(registry.options()) + "\n" + documentation.document(registry)
    written = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert written == page, "run: rlhf-peft --no-plugins schema --markdown > recipes/README.md"
