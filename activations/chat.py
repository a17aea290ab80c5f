"""Conversations as the text that a chat model reads, and who said each token of it.

Enters: messages (mappings with `role` and `content`) and a tokenizer with a chat template. Leaves: token ids to go on
from (`chat_prompt_ids`); or those of a whole conversation, and which of them belong to messages of the roles asked for;
what the template adds (headers, ends of turns, default instructions) belongs to none.

1. The template renders the whole conversation; the text is tokenised once, as the tokenizer does for chats, with
   offsets.
2. Where the template marks what the assistant generates (`{% generation %}`), these tokens are the assistant's.
3. Every other message stands between the rendering of the conversation up to it and that with it; there its content is
   looked for, from the end, since headers may hold the same words. A template that renders a beginning differently from
   the whole (some drop earlier turns' reasoning) leaves the search to what follows the message before.
4. A message whose content is not written as it was given (a tool call) has all of its rendering.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from activations.model import LanguageModel

Message = Mapping[str, Any]


class ChatTokens(NamedTuple):
    """A rendered conversation."""

    ids: list[int]
    chosen: list[bool]
    """True at the tokens of messages of the roles asked for; everywhere if none were."""


def chat_tokens(lm: LanguageModel, messages: Sequence[Message], name: str, roles: Sequence[str] = ()) -> ChatTokens:
    """Tokenises a conversation and marks the tokens of `roles`; `name` says in errors which one.

    Raises:
        ValueError: the tokenizer has no chat template or no offsets, the template refuses the messages, or a message is
            not to be found in the rendered text.
    """
    tokenizer = _chat_tokenizer(lm)
    given = [dict(message) for message in messages]
    text = _rendered(tokenizer, given, name)
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    if not roles:
        return ChatTokens(ids, [True] * len(ids))
    wanted = set(roles)
    marked = _marked(tokenizer, given, ids) if "assistant" in wanted else None
    if marked is not None:
        wanted.discard("assistant")
    chosen = marked or [False] * len(ids)
    if wanted:
        said_by = [message["role"] for message in given]
        for role, (start, end) in zip(said_by, _places(tokenizer, given, text, name), strict=True):
            if role in wanted:
                for place, (first, last) in enumerate(offsets):
                    chosen[place] |= first < end and last > start
    return ChatTokens(ids, chosen)


def why_no_chat(lm: LanguageModel) -> str | None:
    """Says why one cannot talk with a model; None where one can."""
    if lm.kind != "decoder":
        return f"{lm.name} is an {lm.kind}, expected a decoder: open a chat model's dictionary"
    if not getattr(lm.tokenizer, "chat_template", None):
        return (
            f"the tokenizer of {lm.name} has no chat template, expected a model that was trained to talk: "
            "continue plain text instead"
        )
    return None


def chat_prompt_ids(lm: LanguageModel, messages: Sequence[Message]) -> list[int]:
    """Returns the ids of a conversation up to the place where the assistant is to speak, as the template writes it.

    Raises:
        ValueError: the model is none to talk with (`why_no_chat`), or the template refuses the messages.
    """
    if reason := why_no_chat(lm):
        raise ValueError(reason)
    given = [dict(message) for message in checked_messages(list(messages), "the conversation")]
    text = _rendered(lm.tokenizer, given, "the conversation", add_generation_prompt=True)
    return list(lm.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])


def _chat_tokenizer(lm: LanguageModel) -> Any:
    tokenizer = lm.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {lm.name} has no chat template, expected one for data.messages_column: name a chat "
            "model, or read plain text with data.text_column"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {lm.name} ({type(tokenizer).__name__}) tells no offsets, expected a fast one: use a "
            "model whose tokenizer comes as tokenizer.json"
        )
    return tokenizer


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], name: str, *, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the chat template refuses the messages of {name} ({reason}), expected a conversation as the model knows "
            "it: correct or leave out that row"
        ) from error


def _beginning(tokenizer: Any, messages: list[dict[str, Any]], text: str) -> str | None:
    """Returns the rendering of a conversation's first messages, or None where it is not how `text` begins."""
    from jinja2 import TemplateError

    if not messages:
        return ""
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, KeyError):
        return None  # a template may refuse what does not end with an answer
    return rendered if text.startswith(rendered) else None


def _marked(tokenizer: Any, messages: list[dict[str, Any]], ids: list[int]) -> list[bool] | None:
    """Returns what the template marks as generated, or None where it marks nothing."""
    if not re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()):
        return None
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    # the same text, tokenised in the same way
    assert list(encoded["input_ids"]) == ids
    return [bool(mark) for mark in encoded["assistant_masks"]]


def _places(tokenizer: Any, messages: list[dict[str, Any]], text: str, name: str) -> list[tuple[int, int]]:
    """Returns where each message's content stands in the rendered text."""
    places: list[tuple[int, int]] = []
    done = 0
    beginnings = [_beginning(tokenizer, messages[:count], text) for count in range(len(messages))] + [text]
    for number, message in enumerate(messages):
        before, after = beginnings[number : number + 2]
        content = _content(message)
        start = len(before) if before is not None and len(before) >= done else done
        end = len(after) if after is not None and len(after) >= start else None
        find = text.find if end is None else text.rfind
        at = find(content, start, end) if content else -1
        if at >= 0:
            place = (at, at + len(content))
        elif before is not None and end is not None:
            place = (start, end)
        else:
            raise ValueError(
                f"message {number} of {name} ({message['role']}) is not found in what the chat template makes of "
                "it, expected its content there: leave out that row, or use a template with generation marks"
            )
        places.append(place)
        done = place[1]
    return places


def _content(message: Message) -> str:
    """Returns a message's text without blanks at its ends, which templates strip."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "\n".join(part.get("text") or "" for part in content)
    return content.strip()


def checked_messages(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Returns the messages of a row; ValueError if they are no list of mappings with a role and content."""
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{where} holds {type(value).__name__}, expected a list of messages with `role` and `content`: set "
            "data.messages_column"
        )
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            keys = ", ".join(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise ValueError(
                f"{where}: message {number} has no role ({keys}), expected `role` and `content`: rename its keys"
            )
        # columns of a table hold every key in every message
        kept = {key: part for key, part in message.items() if part is not None}
        content = kept.get("content", "")
        parts_fit = isinstance(content, list) and all(isinstance(part, Mapping) for part in content)
        if not isinstance(content, str) and not parts_fit:
            raise ValueError(
                f"{where}: message {number} has content of type {type(content).__name__}, expected text or parts with "
                "`text`: correct the row"
            )
        if set(kept) == {"role"}:
            raise ValueError(f"{where}: message {number} has no content, expected text: correct or leave out the row")
        messages.append(kept)
    return tuple(messages)
