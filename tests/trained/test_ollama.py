"""The Modelfile says what the chat template says, and nothing of it is lost."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing

from rlhf_peft.engine import BaseSpec, SharedBase
from rlhf_peft.trained.ollama import added_start, modelfile, pieces_of


@pytest.fixture(scope="module")
def stack():
    return SharedBase(BaseSpec("builtin:tiny", device="cpu"))


def adding(tokenizer):
    """A copy that puts its token for the beginning before every text, as Llama's does."""
    copy = deepcopy(tokenizer)
    bos, number = copy.bos_token, copy.bos_token_id
    copy.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    return copy


LOOP = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + LOOP
)
LLAMA3 = (
    "{{ bos_token }}<|start|>system<|stop|>\n\nToday: {% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot|>{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n"
    "{{ m.content }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content ~ '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}"
    "{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + LOOP
TALK = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "general"},
    {"role": "user", "content": "well"},
]


@pytest.mark.parametrize(
    ("template", "system"), [(LOOP, True), (QWEN, True), (LLAMA3, True), (GEMMA, False), (REFUSES, False)]
)
def test_a_chat_template_in_pieces_says_the_same(stack, template, system):
    tokenizer = deepcopy(stack.tokenizer)
    tokenizer.chat_template = template
    pieces = pieces_of(tokenizer)
    assert (pieces.system is not None) is system
    talks = [TALK[:1], TALK, *([[{"role": "system", "content": "Be brief."}, *TALK]] if system else [])]
    for talk in talks:
        expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert pieces.render(talk) == expected


def test_a_chat_template_becomes_ollamas(stack):
    tokenizer = deepcopy(stack.tokenizer)
    tokenizer.chat_template = QWEN
    assert (
        'TEMPLATE """{{ if not .System }}<|im_start|>system\nYou are helpful.<|im_end|>\n{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ end }}<|im_start|>assistant\n"""' in modelfile(tokenizer, stack)
    )
    # What drops messages is no sequence of pieces.
    for template in ("{{ messages | length }}", "{{ messages[-1].content }}"):
        tokenizer.chat_template = template
        text = modelfile(tokenizer, stack)
        assert "TEMPLATE" not in text and "# The chat template cannot be put into Ollama's language" in text


def test_a_first_token_is_left_out_only_where_the_tokenizer_itself_adds_it(stack):
    tokenizer = deepcopy(stack.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ bos_token }}{{ m.role }}\n{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
    bos = tokenizer.bos_token
    assert added_start(tokenizer) == "" and added_start(adding(tokenizer)) == bos
    assert pieces_of(tokenizer).render(TALK[:1]).startswith(f"{bos}user\nhello there")
    begun = adding(tokenizer)
    begun.chat_template = "{{ bos_token }}" + LOOP
    assert pieces_of(begun).render(TALK[:1]).startswith("<|im_start|>user\nhello there")


@pytest.mark.parametrize(
    ("context", "trained_length", "expected"),
    [(512, 64, 512), (512, None, 512), (131072, 1024, 8192), (131072, None, 8192), (131072, 16000, 16000)],
)
def test_the_context_is_the_models_within_reason(stack, context, trained_length, expected):
    base = SimpleNamespace(eos_ids=stack.eos_ids, loaded=SimpleNamespace(context_length=context))
    assert f"PARAMETER num_ctx {expected}\n" in modelfile(stack.tokenizer, base, trained_length)
