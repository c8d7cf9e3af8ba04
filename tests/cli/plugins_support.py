"""A plugin with one reward, for the tests of `rlhf-peft plugins`."""

REWARD = '''
"""Counts letters."""
import torch
from pydantic import Field
from rlhf_peft.plugin import Options, Scores, hookimpl

class Letters:
    """Longer is better."""
    class Options(Options):
        """How much."""
        scale: float = Field(1.0, gt=0, description="Of a letter.")
    roles, timeout = (), None
    def __init__(self, options):
        self.scale = options.scale
    async def score(self, batch):
        return Scores(row=self.scale * torch.tensor([float(len(t)) for t in batch.texts]))

@hookimpl
def rlhf_peft_register_rewards(register):
    register("letters", Letters)

@hookimpl
def rlhf_peft_run_end(run):
    pass
'''
