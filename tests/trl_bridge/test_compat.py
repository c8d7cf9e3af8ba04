"""Each private name of TRL, transformers' Trainer and accelerate that the package uses, one by one."""

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers import Trainer, TrainingArguments
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from rlhf_peft.errors import PluginError
from rlhf_peft.trl_bridge import compat
from rlhf_peft.trl_bridge.trainer import quiet_trainer

TRAINERS = [SFTTrainer, DPOTrainer, KTOTrainer]


@pytest.mark.parametrize("name", compat.OVERRIDES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_private_method_is_there(trainer, name):
    assert callable(getattr(trainer, name)), (
        f"trl renamed {trainer.__name__}.{name}: see trl_bridge/compat.py"
    )


def test_telemetry_is_sent_by_this_method():
    assert hasattr(SFTTrainer, compat.TELEMETRY), "trl renamed _send_telemetry: see trl_bridge/compat.py"


def test_what_a_trainer_calls_is_ours():
    quiet = quiet_trainer(SFTTrainer)
    for name in ("_save_checkpoint", "_load_rng_state", compat.TELEMETRY):
        assert getattr(quiet, name) is getattr(compat.PrivateOverrides, name), name


@pytest.mark.parametrize("name", compat.OVERRIDES)
def test_a_renamed_method_is_named_with_what_would_break(name):
    hidden = {n: getattr(SFTTrainer, n) for n in compat.OVERRIDES if n != name}
    renamed = type("SFTTrainer", (), hidden)
    with pytest.raises(PluginError, match=rf"no SFTTrainer\.{name} any more .*trl_bridge/compat\.py"):
        quiet_trainer(renamed)


@pytest.mark.parametrize("name", ["_compute_kl_logps", "_prepare_dataset"])
def test_ktos_private_methods_are_there(name):
    assert callable(getattr(KTOTrainer, name)), f"trl renamed KTOTrainer.{name}: see KtoWithOwnKl"


@pytest.mark.parametrize("state", [PartialState, AcceleratorState, GradientState])
def test_accelerates_states_are_shared_mappings(state):
    assert isinstance(state._shared_state, dict), f"accelerate changed {state.__name__}._shared_state"


def test_accelerates_state_is_put_back():
    before = dict(PartialState._shared_state)
    with compat.own_accelerate():
        PartialState(cpu=True)
    assert dict(PartialState._shared_state) == before


def test_a_trainer_computes_on_the_device_it_is_told(tmp_path):
    with compat.own_accelerate():
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        compat.use_device(args, torch.device("cpu"))
        assert args.device == torch.device("cpu") and args.n_gpu == 0


def test_a_trainers_state_is_read_from_this_file():
    import inspect

    assert compat.TRAINER_STATE_NAME == "trainer_state.json"
    assert "TRAINER_STATE_NAME" in inspect.getsource(Trainer._inner_training_loop) + inspect.getsource(
        Trainer.train
    )


class Counts:
    def __init__(self):
        self._metrics, self._total_train_tokens = {"train": {"loss": [1.0]}}, 5


def test_metrics_stay_as_they_were():
    trainer = Counts()
    with compat.unchanged_metrics(trainer):
        trainer._metrics["train"]["loss"].append(2.0)
        compat.set_tokens_read(trainer, 9)
    assert trainer._metrics == {"train": {"loss": [1.0]}} and compat.tokens_read(trainer) == 5
