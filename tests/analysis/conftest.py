import json

import pytest
import yaml

from rlhf_peft.runs import History, RunFolder

RECIPE = {
    "version": 1,
    "name": "r",
    "seed": 1,
    "output_dir": "runs",
    "model": {"path": "builtin:tiny", "quantization": "nf4"},
    "lora": {"r": 8},
    "stages": [
        {"name": "rm", "stage": "reward_model", "dataset": {"name": "tiny"}},
        {
            "name": "rl",
            "stage": "rl",
            "dataset": {"name": "tiny"},
            "algorithm": {"name": "ppo"},
            "rewards": [{"name": "gold", "weight": 1.0}],
        },
    ],
}


@pytest.fixture
def make_run(tmp_path):
    """A run folder as a run leaves it: eight RL steps whose reward rises by `slope` a step."""

    def make(name, *, slope=0.1, seed=1, algorithm="ppo", steps=8, times=True):
        recipe = json.loads(json.dumps(RECIPE))
        recipe |= {"name": name, "seed": seed}
        recipe["stages"][1]["algorithm"]["name"] = algorithm
        run = RunFolder.create(tmp_path / "runs", name)
        run.write_recipe(yaml.safe_dump(recipe))
        for step in range(1, 4):
            run.append_metrics("rm", step, {"loss": 0.7 - 0.1 * step, "accuracy": 0.5 + 0.1 * step})
        run.append_metrics("rm", 3, {"eval/accuracy": 0.8, "eval/loss": 0.5})
        run.append_samples(
            {
                "stage": "rm",
                "step": 3,
                "split": "pairs",
                "row": i,
                "prompt": f"Pair {i}?",
                "chosen": "good",
                "rejected": "bad",
                "margin": (-1) ** i * i / 4,
                "label": 1.0,
            }
            for i in range(12)
        )
        for step in range(steps + 1):
            figures = {"eval/reward": slope * step, "eval/kl": 0.5 * step} if step % 4 == 0 else {}
            if step:
                figures |= {
                    "reward": slope * step,
                    "rewards/gold/mean": slope * step,
                    "kl": 0.4 * step,
                    "entropy": 1.0,
                    "num_tokens": 100.0 * step,
                    "step_time": 2.0,
                    "time/rollout": 1.0,
                    "time/scoring": 0.4,
                    "time/update": 0.6,
                    "completions/mean_length": 10.0 + step,
                }
            run.append_metrics("rl", step, figures)
            if step % 4 == 0:
                run.append_samples(
                    {
                        "stage": "rl",
                        "step": step,
                        "split": "eval",
                        "prompt": [{"role": "user", "content": f"Say {i} </script> & more"}],
                        "completion": "yes yes yes yes" if i == 2 and step else f"answer {i} of step {step}",
                        "rewards": {"gold": slope * step * (1 if i else -1)},
                        "kl": 0.1 * step,
                        "finish": "length" if i == 1 else "eos",
                    }
                    for i in range(5)
                )
        run.stage_done("rm"), run.stage_done("rl")
        run.finish("done")
        return History.of(run.path)

    return make
