import pytest

from rlhf_peft.engine import BaseSpec, LoraSpec, SharedBase
from rlhf_peft.session.policy_view import BaseView

from ..quantizers import held_as


@pytest.fixture(scope="session")
def tiny_base():
    """The shipped model, with a policy that is not the base's."""
    import torch

    base = SharedBase(BaseSpec("builtin:tiny", **held_as("nf4"), device="cpu"), LoraSpec(r=4), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return base


@pytest.fixture
def view(tiny_base):
    return BaseView(tiny_base)
