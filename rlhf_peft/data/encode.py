"""Rows to token ids, so that what is trained on is exactly what sampling will see.

An answer is always the prompt's ids, unchanged, followed by the answer's own tokens and an end: answers are
tokenised apart from their prompt, as a model writes them. Nothing here compares with the pad id, which may
equal EOS.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import DataError, ModelError
from .conversation import explicit, from_sharegpt, is_messages, tidy, with_system
from .rows import BadRow

log = logging.getLogger("rlhf_peft")


class Encoder:
    """Encodes the rows of a dataset for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template_kwargs: passed to the chat template.
        system: put before conversations that have no system message.
        max_length: most tokens of a row, prompt and answer; None: no limit.
        eos_ids: ids that end an answer; default: the tokenizer's EOS.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = None,
        max_length: int | None = None,
        eos_ids: Collection[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(chat_template_kwargs or {})
        self.system = system
        self.max_length = max_length
        self.eos_id: int | None = tokenizer.eos_token_id
        own = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids = frozenset(own if eos_ids is None else eos_ids)
        # Ids that close a turn: a template may end one with a special token that is not EOS (Gemma).
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {id for id, token in added.items() if token.special}
        self.ends = self.eos_ids | special | set(tokenizer.all_special_ids)
        self.start = self._start()
        self._warned = False

    # --- rows ---

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of a row's prompt, ready to be continued by an answer.

        A preference row without `prompt` gives the beginning that both answers share; plain text without one
        gives what the tokenizer puts before every text (perhaps nothing).
        """
        if "chosen" in row and "rejected" in row:
            row = explicit(row)
        return self._prompt(row.get("prompt") or "")

    def pair(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Ids of prompt and chosen, and of prompt and rejected answer; both begin with `prompt(row)`."""
        row = explicit(row)
        return self._answered(row["prompt"], row["chosen"]), self._answered(row["prompt"], row["rejected"])

    def completion(self, row: Mapping[str, Any]) -> list[int]:
        """Ids of a demonstration: prompt and completion, a whole conversation, or a text, with its end."""
        messages = row.get("messages") or row.get("conversations")
        if messages:
            messages = with_system(tidy(from_sharegpt(messages)), self.system)
            return self._ended(self._tokens(self._render(messages)))
        if "text" in row and "completion" not in row:
            return self._answered("", row["text"])
        return self._answered(row.get("prompt") or "", row["completion"])

    def text(self, ids: Sequence[int]) -> str:
        """Text of some ids, special tokens left out."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def check_length(self, ids: Sequence[int], what: str = "the row", extra: int = 0) -> None:
        """Raise BadRow if ids, and `extra` tokens to be written after them, are longer than `max_length`."""
        if self.max_length is None or len(ids) + extra <= self.max_length:
            return
        more = f", {len(ids) + extra:,} with max_new_tokens={extra}" if extra else ""
        raise BadRow(
            f"{what} has {len(ids):,} tokens{more}; the limit is model.max_length={self.max_length}",
            "too long",
            "Shorten it, set a larger model.max_length where the model allows it",
        )

    # --- prompt and answer ---

    def _prompt(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self._started(prompt)
        return self._tokens(self._prompt_text(prompt))

    def _answered(self, prompt: Any, answer: Any) -> list[int]:
        if isinstance(answer, str) and not is_messages(prompt):
            if not prompt:
                return self._ended(self._started(answer), plain=True)
            return self._ended([*self._started(prompt), *self._tokens(answer)], plain=True)
        if isinstance(answer, str):
            answer = [{"role": "assistant", "content": answer}]
        if not prompt:
            return self._ended(self._tokens(self._render(with_system(tidy(answer), self.system))))
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return [*self._tokens(self._prompt_text(prompt)), *self._answer_ids(prompt, answer)]

    def _answer_ids(self, prompt: list[dict[str, Any]], answer: list[dict[str, Any]]) -> list[int]:
        before = self._prompt_text(prompt)
        whole = self._render([*with_system(tidy(prompt), self.system), *tidy(answer)])
        if whole.startswith(before):
            return self._ended(self._tokens(whole[len(before) :]))
        return self._ended(self._tokens(self._after(before, whole, answer)))

    def _after(self, before: str, whole: str, answer: list[dict[str, Any]]) -> str:
        """The answer as the template writes it, where the template changes the prompt once it is answered."""
        if not self._warned:
            self._warned = True
            log.warning(
                "the chat template writes a prompt alone and an answered prompt differently; answers are put "
                "after the prompt alone, as in sampling (model.chat_template_kwargs may make the two agree)"
            )
        shared = 0
        while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
            shared += 1
        said = answer[0].get("content")
        said = said if isinstance(said, str) else ""
        for content in (said.strip(), said.rpartition("</think>")[2].strip()):
            # It begins before the first difference where its first letters agree with the prompt's end.
            place = whole.find(content, max(0, shared - len(content))) if content else -1
            if place >= 0:
                return whole[place:]
        raise BadRow("the chat template rewrites the answer beyond recognition", "rewritten by the template")

    # --- text and tokens ---

    def _prompt_text(self, prompt: list[dict[str, Any]]) -> str:
        messages = with_system(tidy(prompt), self.system)
        unfinished = bool(messages) and messages[-1].get("role") == "assistant"
        return self._render(messages, add_generation_prompt=not unfinished, continue_final_message=unfinished)

    def _render(self, messages: list[dict[str, Any]], **how: Any) -> str:
        if not self.tokenizer.chat_template:
            called = getattr(self.tokenizer, "name_or_path", None) or "the model"
            raise DataError(
                f"model.path: {called}: the rows are conversations, but the tokenizer has no chat template. "
                "Use a model with one, save a chat_template.jinja beside the tokenizer, or give rows of "
                "plain text."
            )
        how = {**how, **self.template_kwargs}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **how))
        except Exception as error:  # templates raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadRow(f"the chat template refuses it: {reason}", "refused by the chat template") from error

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _start(self) -> list[int]:
        """What the tokenizer puts before every text (BOS); what it puts after one is never wanted."""
        bare = self._tokens("a")
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        for place in range(len(full) - len(bare) + 1):
            if full[place : place + len(bare)] == bare:
                return full[:place]
        return []

    def _started(self, text: str) -> list[int]:
        ids = self._tokens(text)
        return ids if self.start and ids[: len(self.start)] == self.start else [*self.start, *ids]

    def _ended(self, ids: list[int], *, plain: bool = False) -> list[int]:
        """The ids with one end: blanks after an end of turn are cut; EOS follows where there is no end.

        Args:
            ids: of an answer or a whole row.
            plain: only EOS itself counts as an end, not the end of a template's turn.
        """
        ends = self.eos_ids if plain else self.ends
        last = len(ids)
        while last and ids[last - 1] not in ends:
            last -= 1
        if last and not self.tokenizer.decode(ids[last:]).strip():
            return ids[:last]
        return ids if self.eos_id is None else [*ids, self.eos_id]


def check_tokens(tokenizer: Any, vocab_size: int) -> None:
    """Raise ModelError if the tokenizer has a token that the embedding has not.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_size: rows of the model's input embedding.
    """
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= vocab_size)
    if not beyond:
        return
    id, token = beyond[0]
    more = f" and {len(beyond) - 1:,} more" if len(beyond) > 1 else ""
    raise ModelError(
        f"the tokenizer has a new token that the embedding does not have: {token!r} (id {id:,}){more}; the "
        f"embedding has {vocab_size:,} rows. Use the model's own tokenizer, or resize the embedding and save "
        "the model first."
    )
