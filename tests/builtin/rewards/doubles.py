"""A batch by hand, and a loop to score it on."""

import asyncio
import inspect

import torch

from rlhf_peft.plugin import RewardBatch, Rollout


def batch(
    n=3, heads=None, columns=None, step=4, completions=None, prompts=None, ids=None, group=None, logps=None
):
    n = len(completions or ids or [0] * n)
    rollout = Rollout(
        [torch.arange(3)] * n,
        [torch.tensor([False, True, True])] * n,
        ["eos"] * n,
        torch.arange(n) if group is None else torch.tensor(group),
        ["sample"] * n,
        {},
    )
    prompts = prompts or ["p"] * n
    return RewardBatch(
        prompts=prompts,
        completions=completions or [f"c{i}" for i in range(n)],
        completion_ids=ids or [[1, 2]] * n,
        finish=["eos"] * n,
        columns={"prompt": prompts, **(columns or {})},
        rollout=rollout,
        heads=heads or {},
        step=step,
        generator=torch.Generator(),
        logps=logps or {},
    )


def chats(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def score(reward, given):
    """What a reward says, async or not; its connections are closed."""

    async def run():
        out = reward.score(given)
        try:
            return await out if inspect.isawaitable(out) else out
        finally:
            if hasattr(reward, "close"):
                await reward.close()

    return asyncio.run(run())
