"""The few-shot prompt form of BABILong, worded by ourselves after the pattern of the published one."""

_LATEST = "When somebody moved more than once, only the latest place counts."
_HIDDEN = "Between the lines of a long text, which has nothing to do with them, there are facts about {what}."

# Per task: what the facts are about, how to answer, and examples of (facts, question, answer).
_PROMPTS: dict[str, tuple[str, str, tuple[tuple[str, str, str], ...]]] = {
    "qa1": (
        "where people are",
        f"{_LATEST} Answer with the name of the place and nothing else.",
        (
            ("Nora went to the cellar. Emil travelled to the balcony.", "Where is Nora?", "cellar"),
            (
                "Emil moved to the porch. Nora went to the attic. Emil went to the cellar.",
                "Where is Emil?",
                "cellar",
            ),
        ),
    ),
    "qa2": (
        "where people are and what they carry",
        "A thing that is carried is where its carrier is; a thing put down stays where it was put. "
        "Answer with the name of the place and nothing else.",
        (
            (
                "Nora went to the cellar. Nora got the ladder. Nora moved to the attic.",
                "Where is the ladder?",
                "attic",
            ),
            (
                "Emil took the lamp. Emil went to the porch. Emil left the lamp. Emil went to the cellar.",
                "Where is the lamp?",
                "porch",
            ),
        ),
    ),
    "qa3": (
        "where people are and what they carry",
        "A thing that is carried is where its carrier is. You are asked where a thing was before it came to "
        "some place. Answer with the name of the place and nothing else.",
        (
            (
                "Nora got the ladder. Nora went to the cellar. Nora moved to the attic. Nora went to the porch.",
                "Where was the ladder before the porch?",
                "attic",
            ),
            (
                "Emil went to the porch. Emil took the lamp. Emil went to the cellar. Emil left the lamp.",
                "Where was the lamp before the cellar?",
                "porch",
            ),
        ),
    ),
    "qa4": (
        "how places lie to each other",
        "Answer with the name of the place and nothing else.",
        (
            (
                "The attic is north of the cellar. The cellar is north of the porch.",
                "What is north of the cellar?",
                "attic",
            ),
            (
                "The porch is west of the attic. The balcony is east of the attic.",
                "What is the attic west of?",
                "balcony",
            ),
        ),
    ),
    "qa5": (
        "who gave what to whom",
        "Answer with one word, the name of a person or of a thing, and nothing else.",
        (
            ("Nora took the lamp there. Nora handed the lamp to Emil.", "Who received the lamp?", "Emil"),
            ("Emil got the ladder. Emil gave the ladder to Nora.", "What did Emil give to Nora?", "ladder"),
        ),
    ),
    "qa6": (
        "where people are",
        f"{_LATEST} Answer yes or no and nothing else.",
        (
            ("Nora went to the cellar. Emil travelled to the balcony.", "Is Nora in the cellar?", "yes"),
            ("Emil moved to the porch. Emil went to the attic.", "Is Emil in the porch?", "no"),
        ),
    ),
    "qa7": (
        "what people pick up, put down and hand on",
        "Answer with one word, none, one, two or three, and nothing else.",
        (
            ("Nora took the lamp. Nora got the ladder.", "How many objects is Nora carrying?", "two"),
            ("Emil took the lamp. Emil left the lamp.", "How many objects is Emil carrying?", "none"),
        ),
    ),
    "qa8": (
        "what people pick up, put down and hand on",
        "Answer with the things, separated by a comma, or with nothing if there are none. No other word.",
        (
            ("Nora took the lamp. Nora got the ladder.", "What is Nora carrying?", "lamp,ladder"),
            ("Emil took the lamp. Emil left the lamp.", "What is Emil carrying?", "nothing"),
        ),
    ),
    "qa9": (
        "where people are and where they are not",
        f"{_LATEST} Answer yes or no and nothing else.",
        (
            ("Nora is in the cellar. Emil is no longer in the porch.", "Is Emil in the porch?", "no"),
            ("Emil is not in the attic. Nora went to the porch.", "Is Nora in the porch?", "yes"),
        ),
    ),
    "qa10": (
        "where people are or may be",
        f"{_LATEST} Answer yes, no or maybe and nothing else.",
        (
            (
                "Nora is in the cellar. Emil is either in the attic or the porch.",
                "Is Emil in the attic?",
                "maybe",
            ),
            (
                "Emil is either in the attic or the porch. Emil went to the cellar.",
                "Is Emil in the cellar?",
                "yes",
            ),
            ("Nora moved to the porch. Emil is in the attic.", "Is Nora in the attic?", "no"),
        ),
    ),
}


def few_shot_prompt(task: str, context: str, question: str) -> str:
    """Instruction, examples, closing prompt, context and question of `qa1` to `qa10`."""
    about, how, examples = _PROMPTS[task]
    shown = "\n".join(
        f"<example>\nFacts: {facts}\nQuestion: {asked}\nAnswer: {answer}\n</example>"
        for facts, asked, answer in examples
    )
    return (
        f"{_HIDDEN.format(what=about)} Use these facts alone to answer the question at the end. {how}\n\n"
        f"{shown}\n\nThe text follows. Keep to the form of the examples: the answer, then stop.\n\n"
        f"<context>\n{context}\n</context>\n\nQuestion: {question}\nAnswer:"
    )
