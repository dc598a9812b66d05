"""The columns of the hub's data sets that lm-eval's tasks read, a schema for each task."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Text = Annotated[str, Meta(min_length=1)]


class WikiText(Struct):
    page: Text


class Lambada(Struct):
    text: Annotated[str, Meta(pattern="[^ ] [^ ]+$")]  # what follows the last space is to be predicted


class Piqa(Struct):
    goal: str
    sol1: Text
    sol2: Text
    label: Annotated[int, Meta(ge=0, le=1)]


class HellaSwag(Struct):
    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: Annotated[list[Text], Meta(min_length=4, max_length=4)]
    label: Literal["0", "1", "2", "3"]


class WinoGrande(Struct):
    sentence: Annotated[str, Meta(pattern="_ *[^ ]")]
    option1: str
    option2: str
    answer: Literal["1", "2"]


class Choices(Struct):
    text: Annotated[list[Text], Meta(min_length=2)]
    label: Annotated[list[str], Meta(min_length=2)]


class Arc(Struct):
    question: Text
    choices: Choices
    answerKey: str

    def __post_init__(self) -> None:
        labels = self.choices.label
        if len(labels) != len(self.choices.text) or self.answerKey not in labels:
            raise ValueError(f"answerKey {self.answerKey!r} and {len(labels)} labels do not fit the choices")


class SocialIqa(Struct):
    context: str
    question: Text
    answerA: Text
    answerB: Text
    answerC: Text
    label: Literal["1", "2", "3"]


class BoolQ(Struct):
    passage: str
    question: Text
    label: Annotated[int, Meta(ge=0, le=1)]
