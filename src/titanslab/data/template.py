"""From a question to the text that a model reads for it: a plain template, or the chat template of its tokenizer.

A plain template is a text with `{question}` in it. A model's folder holds it as the chat template of the tokenizer, so
that `apply_chat_template` gives every program the same prompt.
"""

from __future__ import annotations

import json
from typing import Any

QUESTION = "{question}"
DEFAULT = "\n\n{question}\n"  # where neither a template is given nor the tokenizer has one


def check_template(template: str, given_as: str = "template") -> str:
    """`template` itself; ValueError where it does not hold `{question}` exactly once."""
    if template.count(QUESTION) != 1:
        raise ValueError(f"{given_as} must hold {QUESTION} once, got {template!r}; write for example ' {QUESTION}'")
    return template


def chat_template(template: str) -> str:
    """The chat template (Jinja) that writes every message of a user by the plain `template`.

    A message of another role follows after a space, as an answer follows its question in a text; an empty one is left
    out.
    """
    before, _, after = check_template(template).partition(QUESTION)
    literals = [json.dumps(text, ensure_ascii=False) for text in (before, after)]
    user = f"{literals[0]} ~ message['content'] ~ {literals[1]}"
    other = "' ' ~ message['content'].strip() if message['content'].strip() else ''"
    choice = "{%- if message['role'] == 'user' -%}{{ " + user + " }}{%- else -%}{{ " + other + " }}{%- endif -%}"
    return "{%- for message in messages -%}" + choice + "{%- endfor -%}"


def question_prompt(tokenizer: Any, question: str, template: str | None = None) -> str:
    """The text that a model reads for a question, without the token that starts a text.

    Args:
        tokenizer: of the model.
        question: one message of a user.
        template: a plain template; None = the tokenizer's chat template, or `DEFAULT` where it has none.

    Raises:
        ValueError: the template is not one, or the tokenizer's chat template does not take a single message.
    """
    if template is None and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": question}]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"the tokenizer's chat template does not take a question: {error}; give another template (--template)"
            ) from error
        return text.removeprefix(tokenizer.bos_token or "")
    return check_template(DEFAULT if template is None else template).replace(QUESTION, question)
