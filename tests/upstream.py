"""`python -m tests.upstream FOLDER`: the shortest path of everything that calls other libraries, and what they warn of.

It runs in a process of its own, so that what is said once a process, or while something is imported, is heard too. It
prints a line of JSON for each warning: ours, where a call of ours caused it, and those that other libraries cause by
themselves, with no file.
"""

import contextlib
import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path

from tests.blame import Blame, blame, warner_frame

from .small_model import one_layer

TINY = {"name": "tiny", "size": 16}
PROMPTS = {**TINY, "part": "prompts"}
SOON = re.compile(r"deprecat|will be removed|renamed|instead of|no longer", re.IGNORECASE)
"""What a log line says that is a deprecation without a warning."""

DIVERSE = Path(__file__).parents[1] / "plugins" / "rlhf-peft-diverse" / "rlhf_peft_diverse.py"
METHODS = [
    ("ppo", {"num_minibatches": 2, "value": "own"}, "cached"),
    ("grpo", {"num_generations": 2, "beta": 0.1}, "hf"),
    ("gspo", {"num_generations": 2}, "hf"),
    ("cispo", {"num_generations": 2}, "cached"),
    ("rloo", {"num_generations": 2}, "cached"),
    ("reinforce_plus_plus", {}, "cached"),
    ("remax", {}, "cached"),
    ("online_dpo", {}, "vllm_server"),
    ("online_dpo", {}, "diverse"),
    ("rejection_sampling", {}, "best_of_n"),
]
"""Algorithm, its options, and the sampler that it is run with: all of both, and a plugin's that calls the model."""
CANARY = "canary"
"""A library that is not there, whose warning must be heard at the end."""


class Collector(logging.Handler):
    """Keeps what other libraries warn of, with the line of ours that made them."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = {}

    def keep(self, frame, text):
        made = blame(frame, text)
        self.found[made.file, made.line, text.split(":")[0], text[:60]] = made

    def warned(self, message, category, filename, lineno, file=None, line=None):
        if issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            self.keep(warner_frame(), f"{category.__name__}: {message}")

    def emit(self, record):
        if not record.name.startswith("rlhf_peft") and SOON.search(text := record.getMessage()):
            self.keep(warner_frame(), f"log of {record.name}: {text}")

    def listen(self):
        """Hear every warning, and every logger that there is."""
        warnings.simplefilter("always")
        warnings.showwarning = self.warned
        for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)):
            if self not in logger.handlers and (logger is logging.root or not logger.propagate):
                logger.addHandler(self)

    def forget(self):
        """Leave the loggers."""
        for logger in (logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)):
            logger.removeHandler(self)


def recipe(folder, stages, **model):
    return {
        "version": 1,
        "name": "upstream",
        "output_dir": str(folder),
        "device": "cpu",
        "model": {"path": one_layer(), "max_length": 64, **model},
        "lora": {"r": 4, "alpha": 8},
        "stages": stages,
    }


def stages(url):
    """Every stage once, preference and RL once a method."""
    shared = {"batch_size": 4, "max_steps": 1}
    eval_ = {"dataset": {**PROMPTS, "questions": "test", "size": 4}}
    pairs = {**TINY, "part": "preferences"}
    made = [
        {"stage": "sft", "dataset": {**TINY, "part": "demonstrations"}, **shared},
        {"stage": "preference", "name": "dpo", "method": "dpo", "dataset": pairs, **shared},
        {"stage": "preference", "name": "kto", "method": "kto", "dataset": pairs, **shared},
        {
            "stage": "reward_model",
            "dataset": pairs,
            "ensemble": 2,
            "normalize": "standardize",
            "eval": {"dataset": {**pairs, "questions": "test", "size": 4}},
            **shared,
        },
    ]
    short = {"max_new_tokens": 8}
    samplers = {
        # The server of this test says numbers of its own.
        "vllm_server": {"url": url, "check_base": False, **short},
        "best_of_n": {"n": 2, "of": {"name": "cached", **short}},
    }
    for name, options, sampler in METHODS:
        made.append(
            {
                "stage": "rl",
                "name": f"{name}-{sampler}",
                "dataset": PROMPTS,
                "algorithm": {"name": name, **options},
                "sampler": {"name": sampler, **samplers.get(sampler, short)},
                "rewards": [{"name": "learned"}],
                "prompts_per_step": 4,
                "max_steps": 1,
                "eval": eval_,
            }
        )
    return made


def walk(folder, listen):
    """Run everything; `listen` is called after each part, for loggers may have come."""
    from rlhf_peft import api
    from rlhf_peft.cli import execute
    from rlhf_peft.recipe import load
    from rlhf_peft.registry import Registry
    from tests.builtin.samplers.stub import StubServer

    registry = Registry.load([DIVERSE], no_plugins=True)

    def verb(*arguments):
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = execute([str(argument) for argument in arguments])
        if code != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: exit {code}\n{told.getvalue()}")
        listen()

    import torch
    import transformers  # noqa: F401  # its loggers are there before anything is loaded
    import trl  # noqa: F401

    torch.set_num_threads(1)
    listen()
    server = StubServer()
    run = api.run(load(recipe(folder, stages(server.url)), (), plugins=registry), registry=registry).folder
    server.close()
    listen()
    small = [{**stages(server.url)[4], "algorithm": {"name": "ppo", "num_minibatches": 1, "value": "policy"}}]
    small[0]["rewards"] = [{"name": "tiny-gold"}]
    for quantization in ("none", "int8", "fp4"):
        made = recipe(folder / quantization, small, quantization=quantization, gradient_checkpointing=True)
        api.run(load(made, (), plugins=registry), registry=registry)
        listen()
    for target in ("peft", "merged", "vllm", "ollama"):
        verb("export", run, "--to", target, "-o", folder / f"{target}")
    for target in ("peft", "merged"):
        verb("export", run, "--to", target, "--role", "reward-0", "-o", folder / f"reward-{target}")
    verb("eval", run, "--size", 4)
    sys.stdin = io.StringIO("/ref\nHello\n")
    verb("chat", run)
    verb("report", run)
    verb("verify", run)
    verb("plan", "ppo", "model.path=builtin:tiny", "device=cpu")
    verb("doctor")
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    verb("data", rows, "--model", "builtin:tiny")


def main(folder: Path) -> list[Blame]:
    """What was warned of."""
    collector = Collector()
    collector.listen()
    walk(folder, collector.listen)
    old = {}
    code = "import warnings\ndef old(): warnings.warn('old', FutureWarning)"
    exec(compile(code, f"/site-packages/{CANARY}/old.py", "exec"), old)
    old["old"]()
    return sorted(collector.found.values(), key=str)


if __name__ == "__main__":
    for made in main(Path(sys.argv[1])):
        print(json.dumps(made.__dict__), flush=True)
