"""Whatever a trainer does to the model it is lent, everything is as it was after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from rlhf_peft.engine import POLICY, REFERENCE, BaseSpec, LoraSpec, SharedBase
from rlhf_peft.engine.trainer_loan import HIDDEN, configurations, restored_after

from ..quantizers import held_as

ASSETS = Path(__file__).parents[2] / "rlhf_peft" / "assets" / "tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 1280,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


def tiny(folder: Path, config: Any) -> str:
    """A random model, and the shipped tokenizer beside it."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ASSETS / name, folder / name)
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_base(
    folder: Path, *, checkpointing: bool = False, quantization: str = "nf4", config: Any = None
) -> SharedBase:
    source = BaseSpec(tiny(folder, config or LlamaConfig(**SIZES)), **held_as(quantization), device="cpu")
    lora = LoraSpec(r=4, alpha=8.0, dropout=0.25)
    base = SharedBase(source, lora, seed=1, gradient_checkpointing=checkpointing)
    base.roles.add("reward-0", like=POLICY, head=True)
    with torch.no_grad():
        for parameter in base.roles.parameters(POLICY):
            parameter.add_(0.01)
    base.roles.freeze_reference()
    return base


@pytest.fixture(params=[False, True], ids=["plain", "checkpointing"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> SharedBase:
    return make_base(tmp_path, checkpointing=request.param)


def snapshot(base: SharedBase) -> dict[str, Any]:
    """Everything there is to see of a model but the values of its weights."""
    seen: dict[str, Any] = {"switch": base.roles.active.state, "roles": base.roles.names}
    for name, module in base.model.named_modules():
        for key, value in vars(module).items():
            seen[f"{name}:{key}"] = _plain(value)
        seen[f"{name}()"] = getattr(module.forward, "__func__", module.forward)
    for place, config in enumerate(configurations(base.model)):
        seen[f"config {place}"] = {key: _plain(value) for key, value in vars(config).items()}
    for name, parameter in base.model.named_parameters():
        seen[f"{name}:is"] = (id(parameter), parameter.dtype, parameter.requires_grad, parameter.grad)
    return seen


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value).__name__, [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else id(value)


def weights(base: SharedBase) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in base.model.named_parameters()}


def rows(kind: str) -> Dataset:
    texts = ["one fox", "two ducks", "a bear", "an owl"] * 2
    if kind == "sft":
        return Dataset.from_list([{"prompt": text, "completion": " is happy"} for text in texts])
    if kind == "dpo":
        return Dataset.from_list([{"prompt": t, "chosen": " is glad", "rejected": " is sad"} for t in texts])
    return Dataset.from_list(
        [{"prompt": t, "completion": " is glad", "label": bool(i % 2)} for i, t in enumerate(texts)]
    )


TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
}


def train(base: SharedBase, kind: str, folder: Path, **changes: Any) -> Any:
    """A trainer with nearly all of its own defaults: checkpointing, bf16, dropout off, tags."""
    trainer, config = TRAINERS[kind]
    common = {
        "max_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    args = config(
        output_dir=str(folder / "out"), per_device_train_batch_size=4, disable_tqdm=True, **common, **changes
    )
    extra = {} if kind == "sft" else {"ref_model": base.view(REFERENCE)}
    with base.lend(POLICY) as model:
        made = trainer(model, args=args, train_dataset=rows(kind), processing_class=base.tokenizer, **extra)
        made.train()
        assert {p.dtype for p in base.roles.parameters(POLICY)} == {torch.float32}
    return made


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_everything_is_restored_after_training(
    base: SharedBase, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: None)
    before, values = snapshot(base), weights(base)
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad(), base.role(REFERENCE):
        reference = base.lm(input_ids=ids).logits
    train(base, kind, tmp_path)
    after = snapshot(base)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()
    for name, value in weights(base).items():
        assert torch.equal(value, values[name]) is (f".{POLICY}." not in name), name
    with torch.no_grad(), base.role(REFERENCE):
        assert torch.equal(base.lm(input_ids=ids).logits, reference)


@pytest.mark.parametrize("config", [Qwen2Config(**SIZES)], ids=["qwen2"])
def test_other_models_and_no_quantization(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: None)
    base = make_base(tmp_path, config=config, quantization="none")
    before = snapshot(base)
    train(base, "dpo", tmp_path, bf16=False)
    assert snapshot(base) == before


def vandalise(model: Any) -> None:
    """More than any trainer does."""
    lm = model.get_base_model()
    lm.forward = lambda *a, **k: None
    lm.config.use_cache = not lm.config.use_cache
    lm.config.pad_token_id = 77
    lm.config.invented = True
    lm.generation_config.eos_token_id = [5, 6]
    model.peft_config[POLICY].inference_mode = True
    lm.warnings_issued = {"x": True}
    model.train()
    lm.add_module("extra", nn.Linear(1, 1))
    model.enable_input_require_grads()
    lm.register_forward_hook(lambda *_: None)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = torch.zeros_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    model.base_model.disable_adapter_layers()


def test_everything_is_restored_after_an_exception(base: SharedBase) -> None:
    before, values = snapshot(base), weights(base)
    with pytest.raises(KeyboardInterrupt), base.lend(POLICY) as model:
        vandalise(model)
        raise KeyboardInterrupt
    after = snapshot(base)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()
    for name, value in weights(base).items():
        assert torch.allclose(value.float(), values[name].float(), rtol=1e-2), name


def test_lent_model_is_the_role_and_trains_its_adapter_alone(base: SharedBase) -> None:
    with base.role("reward-0"), base.lend(POLICY) as model:
        assert base.roles.active.state.adapters == (POLICY,) and not base.roles.active.state.disabled
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, p in model.named_parameters() if f".{POLICY}." in n and "lora_" in n}
        for key in HIDDEN:
            assert getattr(model, key) is False
    assert not any(p.requires_grad for p in base.model.parameters())


def test_lending_inside_a_role_gives_the_role_back(base: SharedBase) -> None:
    with base.role("reward-0"):
        inside = base.roles.active.state
        with base.lend(POLICY):
            pass
        assert base.roles.active.state == inside
    assert base.roles.active.state.adapters == (POLICY,)


def test_borrowed_restores_containers_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    model.tags, model.table, model.names = ["a"], {"a": 1}, {"a"}  # type: ignore[assignment]
    kept = (model.tags, model.table, model.names)
    with restored_after(model):
        model.tags.append("b")
        model.table["b"] = 2
        model.names = set()
        model.late = 1
        model[0].weight.grad = torch.ones(2, 2)
    assert (model.tags, model.table, model.names) == (["a"], {"a": 1}, {"a"})
    assert all(a is b for a, b in zip((model.tags, model.table, model.names), kept, strict=True))
    assert not hasattr(model, "late") and model[0].weight.grad is None


def test_view_has_no_parameters_and_enters_its_role(base: SharedBase) -> None:
    view = base.view(REFERENCE)
    assert not list(view.parameters()) and not list(view.buffers()) and not list(view.children())
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad(), base.role(REFERENCE, train=False):
        logits = base.lm(input_ids=ids).logits
        hidden = base.loaded.trunk(input_ids=ids).last_hidden_state
    before = snapshot(base)
    base.model.train()
    assert torch.equal(view(input_ids=ids).logits, logits)
    assert torch.equal(view.base_model(input_ids=ids).last_hidden_state, hidden)
    assert view.get_output_embeddings() is base.lm.get_output_embeddings()
    assert not view(ids).logits.requires_grad
    assert base.model.training
    base.model.eval()
    assert snapshot(base) == before
    assert view.dtype == base.lm.dtype and view.device == base.device and view.config is base.lm.config
