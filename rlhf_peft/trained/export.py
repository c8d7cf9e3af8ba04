"""Hands a run over to the tools it is deployed with: PEFT, plain weights, vLLM, Ollama, a sequence classifier.

Merged weights are made from the unquantized base: merging into 4-bit weights would round the adapter away. How far
the merged model's logits are from those of the stack that was trained is measured, and said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..engine import POLICY, SharedBase
from ..engine.adapters import renamed
from ..engine.artifacts import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE
from ..engine.fingerprint import FILE as BASE_FILE
from ..engine.source import DTYPES, quiet
from ..errors import RunFolderError, UsageError
from ..recipe import Recipe, load
from ..runs import History
from .opened import ADAPTERS, Opened, open_run

Target = Literal["peft", "merged", "vllm", "ollama"]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes as --max-lora-rank."""
PROBES = ("The", "Once upon a time", "Question: what is 2 + 2?\nAnswer:", "def main():\n")
SHARD = "4GB"


@dataclass
class Exported:
    """What was written.

    Attributes:
        folder: where.
        difference: largest difference of a logit between what was written and what was trained; None: not merged.
        scale: largest logit of what was trained, for comparison.
        offset: constant by which a classifier's scores differ from the reward head's; None: no classifier.
        commands: to type next.
    """

    folder: Path
    difference: float | None = None
    scale: float | None = None
    offset: float | None = None
    commands: list[str] = field(default_factory=list)


def export(
    run: Path,
    target: Target,
    folder: Path,
    *,
    role: str = POLICY,
    dtype: str = "bfloat16",
    device: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a role of a run for another tool.

    Args:
        run: the run's folder.
        target: peft (an adapter), merged (plain weights), vllm (an adapter and the line that serves it) or ollama
            (plain weights and a Modelfile).
        folder: where to; it must be empty or absent.
        role: policy, or a reward, which is merged into a sequence classifier.
        dtype: of merged weights.
        device: to merge on.
        trust_remote_code: run code from the model's repository.
        say: is told what happens.

    Raises:
        UsageError: the folder is not empty, or the role is not there, or cannot be exported so.
    """
    recipe = load(run / "recipe.yaml", (), plugins=None)
    source = run / ADAPTERS / role
    if not (source / CONFIG_FILE).is_file():
        there = sorted(place.name for place in (run / ADAPTERS).glob("*"))
        raise RunFolderError(f"{run}: has no {role}. It has {', '.join(there) or 'no adapter yet'}.")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not empty. Choose another folder with --output.")
    if role != POLICY and target in ("vllm", "ollama"):
        raise UsageError(f"--to {target}: serves policies. A reward goes with --to peft or --to merged.")
    folder.mkdir(parents=True, exist_ok=True)
    history = History.of(run)
    if target in ("peft", "vllm"):
        return _adapter(recipe, history, source, folder, role, target)
    opened = open_run(run, device=device, trust_remote_code=trust_remote_code)
    say("merging into the unquantized base ...")
    if role == POLICY:
        return _merged(opened, history, folder, DTYPES[dtype], target, trust_remote_code)
    return _classifier(opened, history, role, folder, DTYPES[dtype], trust_remote_code)


def _adapter(
    recipe: Recipe, history: History, source: Path, folder: Path, role: str, target: Target
) -> Exported:
    for name in (ADAPTER_FILE, CONFIG_FILE, HEAD_FILE, BASE_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _tokenizer(recipe, folder)
    (folder / "README.md").write_text(card(recipe, history, role), encoding="utf-8")
    model, place = recipe.model.path, folder.as_posix()
    if target == "peft":
        load_it = f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "{place}")'
        return Exported(folder, commands=[load_it])
    rank = int(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("r", 8))
    most = next((known for known in RANKS if rank <= known), rank)
    template = (
        f" --chat-template {place}/chat_template.jinja" if (folder / "chat_template.jinja").is_file() else ""
    )
    serve = f"vllm serve {model} --enable-lora --max-lora-rank {most} --lora-modules {history.name}={place}{template}"
    return Exported(folder, commands=[serve])


def _tokenizer(recipe: Recipe, folder: Path) -> Any:
    from transformers import AutoTokenizer

    from ..engine import Source

    source = Source(recipe.model.path, revision=recipe.model.revision)
    tokenizer = AutoTokenizer.from_pretrained(source.location, revision=recipe.model.revision)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def _plain_base(opened: Opened, kind: Any, dtype: torch.dtype, trust: bool, **options: Any) -> Any:
    source = opened.base.source
    with quiet():
        return kind.from_pretrained(
            source.location, revision=source.revision, dtype=dtype, trust_remote_code=trust, **options
        ).to(opened.base.device)


def _merge(plain: Any, adapter: Path) -> Any:
    from peft import PeftModel

    with renamed():
        return PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload()


def _merged(
    opened: Opened, history: History, folder: Path, dtype: torch.dtype, target: Target, trust: bool
) -> Exported:
    from transformers import AutoModelForCausalLM

    ids = _probes(opened.base)
    with torch.no_grad(), opened.base.role(POLICY, train=False):
        trained = [opened.base.lm(input_ids=row).logits.float().cpu() for row in ids]
    # Merged in float32 and rounded once.
    plain = _plain_base(opened, AutoModelForCausalLM, torch.float32, trust)
    model = _merge(plain, opened.path / ADAPTERS / POLICY).to(dtype).eval()
    model.config.dtype = dtype
    with torch.no_grad():
        written = [model(input_ids=row).logits.float().cpu() for row in ids]
    difference = max(float((a - b).abs().max()) for a, b in zip(trained, written, strict=True))
    scale = max(float(row.abs().max()) for row in trained)
    with quiet():
        model.save_pretrained(str(folder), max_shard_size=SHARD)
    tokenizer = _tokenizer(opened.recipe, folder)
    (folder / "README.md").write_text(card(opened.recipe, history, POLICY, difference), encoding="utf-8")
    done = Exported(folder, difference, scale)
    if target == "ollama":
        (folder / "Modelfile").write_text(modelfile(tokenizer, opened.base), encoding="utf-8")
        done.commands = [
            f"ollama create {history.name.lower()} -f {folder.as_posix()}/Modelfile",
            f"ollama run {history.name.lower()}",
        ]
    else:
        done.commands = [
            f'AutoModelForCausalLM.from_pretrained("{folder.as_posix()}")',
            f"vllm serve {folder.as_posix()}",
        ]
    return done


def _probes(base: SharedBase) -> list[torch.Tensor]:
    """Short texts, and one of random tokens that is as long as pays."""
    rows = [torch.tensor([base.tokenizer(text)["input_ids"]], device=base.device) for text in PROBES]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(
        base.lm.config.get_text_config().vocab_size, (1, min(64, base.max_length)), generator=generator
    )
    return [row for row in rows if row.shape[1]] + [drawn.to(base.device)]


def _classifier(
    opened: Opened, history: History, role: str, folder: Path, dtype: torch.dtype, trust: bool
) -> Exported:
    """A reward role as a sequence classifier of transformers; its head there has no bias: a constant is left."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base, head = opened.base, opened.base.head(role)
    ids = _probes(base)
    with torch.no_grad(), base.role(role, train=False):
        trained = torch.cat(
            [base.rewards(base.hidden(row), torch.tensor([row.shape[1]]), role).float().cpu() for row in ids]
        )
    plain = _plain_base(opened, AutoModelForCausalLM, torch.float32, trust)
    merged = _merge(plain, opened.path / ADAPTERS / role)
    config = merged.config
    config.num_labels, config.pad_token_id = 1, base.tokenizer.pad_token_id
    config.problem_type = "regression"
    with quiet():
        model = AutoModelForSequenceClassification.from_config(config).to(base.device).eval()
    model.base_model.load_state_dict(merged.base_model.state_dict())
    score = next(
        module
        for name, module in model.named_children()
        if name in ("score", "classifier") and isinstance(module, nn.Linear)
    )
    with torch.no_grad():
        score.weight.copy_(head.weight / head.scale)
    offset = float((head.bias - head.shift) / head.scale)
    model = model.to(dtype)
    model.config.dtype, model.config.score_offset = dtype, offset
    with torch.no_grad():
        written = torch.cat([model(input_ids=row).logits[:, 0].float().cpu() for row in ids]) + offset
    with quiet():
        model.save_pretrained(str(folder), max_shard_size=SHARD)
    _tokenizer(opened.recipe, folder)
    difference = float((trained - written).abs().max())
    (folder / "README.md").write_text(
        card(opened.recipe, history, role, difference, offset), encoding="utf-8"
    )
    load_it = f'AutoModelForSequenceClassification.from_pretrained("{folder.as_posix()}")'
    return Exported(folder, difference, float(trained.abs().max()), offset, [load_it])


def modelfile(tokenizer: Any, base: SharedBase) -> str:
    """A Modelfile for the weights beside it; a chat template of a form that is known becomes Ollama's."""
    lines = ["FROM .", ""]
    template = _ollama_template(tokenizer)
    if template is not None:
        lines += [f'TEMPLATE """{template}"""', ""]
    for token in sorted({tokenizer.convert_ids_to_tokens(i) for i in base.eos_ids}):
        lines.append(f'PARAMETER stop "{token}"')
    lines.append(f"PARAMETER num_ctx {base.max_length}")
    return "\n".join(lines) + "\n"


def _ollama_template(tokenizer: Any) -> str | None:
    """The chat template in Ollama's language, found by what it writes around three messages; None without one."""
    if not tokenizer.chat_template:
        return None
    marks = {"system": "\x01", "user": "\x02", "assistant": "\x03"}
    try:
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": mark} for role, mark in marks.items()], tokenize=False
        )
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "\x02"}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # templates raise what they like; a system message is what some refuse
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": marks[role]} for role in ("user", "assistant")], tokenize=False
        )
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "\x02"}], tokenize=False, add_generation_prompt=True
        )
    if any(text.count(mark) != 1 for mark in ("\x02", "\x03")) or asked.count("\x02") != 1:
        return None
    begun = tokenizer.bos_token or ""
    text, asked = text.removeprefix(begun), asked.removeprefix(begun)
    opening = asked[asked.index("\x02") + 1 :]
    before_user = asked[: asked.index("\x02")]
    after = text[text.index("\x03") + 1 :]
    parts = []
    if "\x01" in text:
        before, rest = text.split("\x01", 1)
        between = rest[: rest.index("\x02")]
        user = before_user if between.endswith(before_user) else between
        parts.append(
            f"{{{{ if .System }}}}{before}{{{{ .System }}}}{between.removesuffix(user)}{{{{ end }}}}"
        )
    parts.append(f"{before_user}{{{{ .Prompt }}}}{opening}{{{{ .Response }}}}{after}")
    return "".join(parts)


def card(
    recipe: Recipe, history: History, role: str, difference: float | None = None, offset: float | None = None
) -> str:
    """A model card: what it is, from what, with which figures, and what it is for."""
    kinds = ", ".join(f"{name} ({kind})" for name, kind in history.kinds.items())
    data = list(dict.fromkeys(str(stage.dataset.path or stage.dataset.name) for stage in recipe.stages))
    figures = []
    for name in history.kinds:
        for key, value in sorted(history.last(name).items()):
            if key.startswith("eval") or key in ("reward", "kl", "loss", "accuracy"):
                figures.append(f"| {name} | {key} | {value:.4g} |")
    tags = ["trl" if role == POLICY else "reward-model", "lora", "peft", "rlhf"]
    head = {
        "base_model": recipe.model.path,
        "library_name": "peft" if difference is None else "transformers",
        "pipeline_tag": "text-generation" if role == POLICY else "text-classification",
        "tags": tags,
    }
    lines = ["---", *_front(head), "---", "", f"# {history.name}: {role}", ""]
    what = "A policy" if role == POLICY else "A reward model"
    lines += [
        f"{what} that was aligned with human feedback on {recipe.model.path}, by rlhf-peft: {kinds}.",
        "",
        "## Data",
        "",
        *(f"- {name}" for name in data),
        "",
        "## Figures",
        "",
        "| stage | figure | last value |",
        "|---|---|---|",
        *figures,
        "",
    ]
    if difference is not None:
        lines += [
            f"Merged into the unquantized base: on short probes the largest difference to what was trained is "
            f"{difference:.3g}.",
            "",
        ]
    if offset is not None:
        lines += [
            f"Scores are those of the reward head less a constant: add {offset:.6g} (`score_offset` in config.json).",
            "",
        ]
    lines += [
        "## Intended use",
        "",
        "For text like that it was trained on. Rewards measure what they were taught, not truth or safety: look at "
        "answers to your own prompts before you rely on it.",
        "",
        "## Recipe",
        "",
        "```yaml",
        (history.path / "recipe.yaml").read_text(encoding="utf-8").rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _front(values: dict[str, Any]) -> Sequence[str]:
    import yaml

    return yaml.safe_dump(values, sort_keys=False).rstrip().splitlines()
