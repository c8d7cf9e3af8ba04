from __future__ import annotations

import copy
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_peft.data.encode import Encoder
from rlhf_peft.data.examples import example
from rlhf_peft.data.formats import detect
from rlhf_peft.data.load import load_rows
from rlhf_peft.data.rows import BadRow
from rlhf_peft.errors import DataError

from .conftest import as_example, assistant, tokenizer, user

CHAT = {"prompt": [user("2+2?")], "chosen": [assistant("It is 4.")], "rejected": [assistant("5\n")]}
PLAIN = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


@pytest.fixture
def change():
    """Changes a tokenizer for the length of a test."""
    before = []

    def set_(tok, **values):
        for name, value in values.items():
            before.append((tok, name, getattr(tok, name)))
            setattr(tok, name, value)
        return tok

    yield set_
    for tok, name, value in reversed(before):
        setattr(tok, name, value)


def check_pair(encoder, row):
    """Both answers begin with the prompt, hold their own text and end once."""
    prompt = encoder.prompt(row)
    for ids in encoder.pair(row):
        assert ids[: len(prompt)] == prompt
        assert len(ids) > len(prompt) + 1
        assert ids[-1] == encoder.eos_id
        assert encoder.eos_id not in ids[len(prompt) : -1]


# --- real rows ---


def conversation(row):
    return {
        "prompt": [user(row["prompt"])],
        "chosen": [assistant(row["chosen"])],
        "rejected": [assistant(row["rejected"])],
    }


def good_rows(path, count):
    rows = load_rows(path=path, split=f"train[:{count}]")
    format = detect(rows)
    for row in rows:
        try:
            yield example(row, format)
        except DataError:
            continue


@pytest.mark.parametrize("as_chat", [False, True])
def test_ultrafeedback_answers_begin_with_their_prompt(ultrafeedback, chat, as_chat):
    encoder = Encoder(chat)
    for row in good_rows(ultrafeedback, 25):
        row = conversation(row) if as_chat else row
        check_pair(encoder, row)
        chosen = encoder.pair(row)[0]
        text = row["chosen"][0]["content"] if as_chat else row["chosen"]
        assert text.strip() in encoder.text(chosen)


def test_hh_answers_begin_with_their_prompt(hh, any_tokenizer):
    encoder = Encoder(any_tokenizer)
    for row in good_rows(hh, 20):
        check_pair(encoder, row)
        whole = {"prompt": "", "chosen": row["prompt"] + row["chosen"], "rejected": "x"}
        assert encoder.pair(whole)[0][-1] == encoder.eos_id


def test_gsm8k_demonstrations(gsm8k, any_tokenizer):
    encoder = Encoder(any_tokenizer)
    columns = {"prompt": "question", "completion": "answer"}
    for row in load_rows(path=gsm8k, split="train[:30]", columns=columns):
        ids = encoder.completion(row)
        assert ids[: len(encoder.prompt(row))] == encoder.prompt(row)
        assert ids[-1] == encoder.eos_id


# --- conversations ---


def test_templates_write_what_the_tokenizer_would(chat):
    encoder = Encoder(chat)
    prompt = chat.apply_chat_template(CHAT["prompt"], add_generation_prompt=True, return_dict=False)
    assert encoder.prompt(CHAT) == prompt
    whole = chat.apply_chat_template([*CHAT["prompt"], *CHAT["chosen"]], return_dict=False)
    chosen = encoder.pair(CHAT)[0]
    assert whole[: len(chosen)] == chosen
    assert chat.decode(whole[len(chosen) :]) == "\n"


def test_template_arguments_reach_the_template(minimind):
    closed, opened = (Encoder(minimind, chat_template_kwargs={"open_thinking": on}) for on in (False, True))
    assert closed.text(closed.prompt(CHAT)) != opened.text(opened.prompt(CHAT))
    assert minimind.decode(opened.prompt(CHAT)).endswith("<think>\n")


def test_an_open_thought_is_continued(minimind):
    encoder = Encoder(minimind, chat_template_kwargs={"open_thinking": True})
    asked = {**CHAT, "chosen": [assistant("<think>\n2 and 2\n</think>\n\n4")]}
    prompt, chosen = encoder.prompt(asked), encoder.pair(asked)[0]
    assert chosen[: len(prompt)] == prompt and chosen[-1] == encoder.eos_id
    assert minimind.decode(chosen).endswith("<think>\n2 and 2\n</think>\n\n4<|im_end|>")


def test_a_closed_thought_stays_as_in_sampling(minimind):
    """The prompt alone has an empty thought; the answered conversation has the answer's own in its place."""
    encoder = Encoder(minimind)
    asked = {**CHAT, "chosen": [assistant("<think>\n2 and 2\n</think>\n\n4")]}
    check_pair(encoder, asked)


def test_a_template_that_strips_thoughts(qwen2, change):
    """A generation prompt opens `<think>`, an answer is written without its thought."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "A:{{ m.content.split('</think>')[-1] }}<|im_end|>"
        "{% else %}U:{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:<think>\n{% endif %}"
    )
    encoder = Encoder(change(qwen2, chat_template=template))
    row = {
        "prompt": [user("hi")],
        "chosen": [assistant("hello")],
        "rejected": [assistant("hi")],
    }
    check_pair(encoder, row)
    assert qwen2.decode(encoder.pair(row)[0]) == "U:hiA:<think>\nhello<|im_end|>"
    assert qwen2.decode(encoder.pair(row)[1]) == "U:hiA:<think>\nhi<|im_end|>"
    assert "writes differently once it is answered" in encoder.take_notes()[0]
    thinks = {**row, "chosen": [assistant("<think>hm</think>hello")]}
    with pytest.raises(
        BadRow,
        match=r"would change what is trained on: the thoughts in the content of message 2 \(assistant\)",
    ):
        encoder.pair(thinks)


def test_turns_may_end_with_another_token_than_eos(qwen2, change):
    """As Gemma's: `<end_of_turn>` ends an answer, EOS never stands in the template."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(change(qwen2, chat_template=template))
    assert qwen2.decode(encoder.pair(CHAT)[0]).endswith("It is 4.<|endoftext|>")


def test_eos_follows_where_a_template_has_no_end(qwen2, change):
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(change(qwen2, chat_template=template))
    assert qwen2.decode(encoder.pair(CHAT)[0]) == "user: 2+2?\nassistant: It is 4.\n<|im_end|>"


def test_an_unfinished_assistant_turn_is_continued(qwen2):
    encoder = Encoder(qwen2)
    row = {"prompt": [user("Sing"), assistant("La la")]}
    assert qwen2.decode(encoder.prompt(row)).endswith("<|im_start|>assistant\nLa la")


def test_system_message(chat):
    with_it, without = Encoder(chat, system="Be brief."), Encoder(chat)
    assert "Be brief." in with_it.text(with_it.prompt(CHAT))
    own = {**CHAT, "prompt": [{"role": "system", "content": "Be brief."}, *CHAT["prompt"]]}
    assert with_it.prompt(CHAT) == with_it.prompt(own) == without.prompt(own)
    check_pair(with_it, CHAT)
    sft = {"messages": [*CHAT["prompt"], *CHAT["chosen"]]}
    assert with_it.completion(sft) == with_it.pair(CHAT)[0]


def test_shapes_of_one_pair_encode_alike(chat):
    encoder = Encoder(chat)
    implicit = {name: [*CHAT["prompt"], *CHAT[name]] for name in ("chosen", "rejected")}
    for row in (implicit, {**implicit, "prompt": "2+2?"}):
        assert encoder.prompt(as_example(row)) == encoder.prompt(CHAT)
        assert encoder.pair(as_example(row)) == encoder.pair(CHAT)


def test_no_chat_template(stories):
    with pytest.raises(DataError, match=r"the tokenizer has no chat template.*plain text"):
        Encoder(stories).prompt(CHAT)


def test_a_template_that_refuses(qwen2, change):
    encoder = Encoder(change(qwen2, chat_template="{{ raise_exception('no') }}"))
    with pytest.raises(DataError, match="refuses it: no"):
        encoder.prompt(CHAT)


# --- plain text ---


def test_plain_rows(any_tokenizer):
    encoder = Encoder(any_tokenizer)
    check_pair(encoder, PLAIN)
    prompt = encoder.prompt(PLAIN)
    assert prompt == any_tokenizer("The sky is")["input_ids"]
    whole = any_tokenizer("The sky is blue.")["input_ids"]
    together = (
        whole[: len(prompt)] == prompt
    )  # else a token stands across, and the prompt stays as in sampling
    assert together == (any_tokenizer.vocab_size != 2048)
    assert encoder.text(encoder.pair(PLAIN)[0]).replace("  ", " ") == encoder.text([*whole, encoder.eos_id])
    assert not together or encoder.pair(PLAIN)[0] == [*whole, encoder.eos_id]


def test_review_sentences_are_read_whole(stories):
    encoder = Encoder(stories)
    row = {"chosen": "the film is good . ", "rejected": "the plot is thin . "}
    bos, eos = stories.bos_token_id, stories.eos_token_id
    assert encoder.prompt(row) == [bos]
    assert encoder.pair(row)[0] == [*stories("the film is good . ")["input_ids"], eos]
    assert encoder.pair({**row, "prompt": ""}) == encoder.pair(row)
    assert encoder.completion({"text": "the film is good . "}) == encoder.pair(row)[0]


def test_review_sentences_without_bos(qwen2):
    encoder = Encoder(qwen2)
    assert encoder.prompt({"chosen": "good", "rejected": "bad"}) == []
    assert encoder.pair({"chosen": "good", "rejected": "bad"})[0] == [
        *qwen2("good")["input_ids"],
        qwen2.eos_token_id,
    ]


def test_what_a_tokenizer_puts_after_a_text_does_not_end_a_prompt(stories):
    class Closing:
        """A tokenizer that puts EOS after every text, as some configurations do."""

        def __call__(self, text, add_special_tokens=True, **more):
            made = stories(text, add_special_tokens=add_special_tokens, **more)
            if add_special_tokens:
                made["input_ids"] = [*made["input_ids"], stories.eos_token_id]
            return made

        def __getattr__(self, name):
            return getattr(stories, name)

    closing = Encoder(Closing())
    assert closing.prompt(PLAIN) == Encoder(stories).prompt(PLAIN)
    assert closing.pair(PLAIN) == Encoder(stories).pair(PLAIN)


def test_pad_equal_to_eos_changes_nothing(qwen2, change):
    before = [Encoder(qwen2).pair(row) for row in (PLAIN, CHAT)]
    padded = Encoder(change(qwen2, pad_token=qwen2.eos_token))
    assert [padded.pair(row) for row in (PLAIN, CHAT)] == before


def test_a_tokenizer_without_eos(stories, change):
    bare = change(stories, eos_token=None)
    encoder = Encoder(bare)
    assert encoder.pair(PLAIN)[0] == [
        *encoder.prompt(PLAIN),
        *bare(" blue.", add_special_tokens=False)["input_ids"],
    ]


def test_eos_written_out_is_not_doubled(qwen2):
    encoder = Encoder(qwen2)
    ended = {**PLAIN, "chosen": " blue.<|im_end|>"}
    assert encoder.pair(ended)[0] == encoder.pair(PLAIN)[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.tuples(*[st.text(min_size=1, max_size=20).filter(str.strip)] * 3), as_chat=st.booleans())
@pytest.mark.parametrize("name", ["tokenizers/qwen2", "tokenizers/minimind"])
def test_any_text(name, texts, as_chat):
    row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    encoder = Encoder(tokenizer(name))
    row = conversation(row) if as_chat else row
    prompt = encoder.prompt(row)
    for ids in encoder.pair(row):
        assert ids[: len(prompt)] == prompt and ids[-1] == encoder.eos_id


# --- limits ---


def test_length_limit(qwen2):
    encoder = Encoder(qwen2, max_length=10)
    encoder.check_length([1] * 10)
    with pytest.raises(DataError, match=r"the row has 11 tokens; the limit is model.max_length=10"):
        encoder.check_length([1] * 11)
    with pytest.raises(DataError, match=r"the prompt has 8 tokens, 12 with max_new_tokens=4; the limit"):
        encoder.check_length([1] * 8, "the prompt", 4)
    Encoder(qwen2).check_length([1] * 10**5)


def test_tokens_beyond_the_embedding(stories):
    """A model may have fewer rows than its tokenizer has tokens (gemma-3-1b's image token): no row may hold them."""
    more = copy.deepcopy(stories)
    more.add_tokens(["<new>"])
    encoder = Encoder(more, vocab_size=2048)
    assert encoder.pair(PLAIN) == Encoder(stories).pair(PLAIN)
    for row in ({**PLAIN, "prompt": "a <new> sky"}, {**PLAIN, "rejected": " <new>"}):
        with pytest.raises(
            BadRow, match=r"it holds the token '<new>' \(id 2,048\), which the model's embedding of 2,048"
        ):
            encoder.pair(row)
    Encoder(more, vocab_size=2049).pair({**PLAIN, "rejected": " <new>"})


# --- the same ids in every stage ---


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer as Llama 2's: it puts `▁` before every text, so a text alone and inside of another differ."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [
        "<unk>",
        "<s>",
        "</s>",
        "<|user|>",
        "<|assistant|>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    words = [
        "Name a fruit.",
        "An apple, a sweet one.",
        "No.",
        "The sky is blue.",
        "fox apple fruit sweet",
    ] * 50
    made.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=[*string.printable, "é"]
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        eos_token="</s>",
        chat_template="{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    )


def test_an_answer_has_the_ids_that_it_has_in_the_whole_text(sentencepiece):
    encoder = Encoder(sentencepiece)
    talk = [user("Name a fruit."), assistant("An apple.")]
    whole = sentencepiece(sentencepiece.apply_chat_template(talk, tokenize=False))["input_ids"]
    alone = sentencepiece("An apple.")["input_ids"]
    prompt, (chosen, _) = encoder.answers(
        {"prompt": talk[:1], "chosen": talk[1:], "rejected": [assistant("No.")]}, "chosen", "rejected"
    )
    assert [*prompt, *chosen] == whole[: len(prompt) + len(chosen)] == encoder.completion({"messages": talk})
    assert chosen[: len(alone)] != alone  # which would have a blank before it


@pytest.mark.parametrize("answer", [" blue.", "blue.", "\nblue.", "  blue", "1", ".", " ", "é"])
@pytest.mark.parametrize("prompt", ["The sky is", "The sky is ", "The sky is\n", "Sky:", "a"])
def test_prompts_stay_as_sampling_sees_them(sentencepiece, qwen2, stories, prompt, answer):
    """Whatever stands at the border: nothing is lost, nothing is added, and the prompt's own ids come first."""
    for tok in (sentencepiece, qwen2, stories):
        encoder = Encoder(tok)
        ids, (given,) = encoder.answers({"prompt": prompt, "completion": answer}, "completion")
        assert ids == encoder.prompt({"prompt": prompt})
        if tok is not stories:  # which has no letters of its own for some of these
            text = tok.decode([*ids, *given], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert text == prompt + answer
