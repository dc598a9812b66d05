"""Two samples for each task of `titans evaluate language`, in the forms of the local files."""

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"query": "Question: Which of these is a metal?", "choices": ["wood", "iron", "wool", "sand"], "gold": 1},
    {"query": "Question: Which animal can fly?", "choices": ["owl", "cow", "eel", "dog"], "gold": 0},
]
LINES: dict[str, list[dict[str, Any]]] = {
    "lambada_test.jsonl": [
        {"text": "The miller had a cat, and at night he looked everywhere for the cat"},
        {"text": '"Where is the\nbridge?" she asked, but nobody knew the bridge'},
    ],
    "piqa-valid.jsonl": [
        {"goal": "open a jar", "sol1": "turn the lid", "sol2": "turn the table"},
        {"goal": "dry a plate", "sol1": "use a wet sponge", "sol2": "use a cloth"},
    ],
    "winogrande.jsonl": [
        {
            "context_options": ["Ann thanked Eve because Ann", "Ann thanked Eve because Eve"],
            "continuation": "had helped her.",
            "gold": 1,
        },
        {
            "context_options": [
                "The cup did not fit the box because the cup",
                "The cup did not fit the box because the box",
            ],
            "continuation": "was too small.",
            "gold": 1,
        },
    ],
    "arc_easy.jsonl": QUESTIONS,
    "arc_challenge.jsonl": QUESTIONS[::-1],
    "siqa_dev_3choice.jsonl": [
        {
            "passage": "Tom lent Kim his bicycle.",
            "question": "How is Kim?",
            "options": "A. angry\nB. thankful\nC. asleep",
            "answer": "B. thankful",
        },
        {
            "passage": "Mia ran home in the rain.",
            "question": "What does Mia want?",
            "options": "A. a dry shirt\nB. more rain\nC. a boat",
            "answer": "A. a dry shirt",
        },
    ],
    "boolq.jsonl": [
        {
            "query": "Passage: Whales breathe air.\nThey live in the sea.\nQuestion: do whales breathe air?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        {"query": "Passage: Snow is cold.\nQuestion: is snow warm?", "choices": ["no", "yes"], "gold": 0},
    ],
}
HELLASWAG = """Roof work: A man is sitting on a roof. he
3
swims a mile.
reads a map.
bakes a cake.
lays down a tile.
How to make tea: Boil the water. Warm the pot first.
0
Pour the water on the leaves.
Paint the pot.
Sell the leaves.
Break the cup.
"""
WIKITEXT = (
    " \n = Old Mill = \n \n The mill stood by a river . \n \n = = Wheel = = \n \n It turned all day , they said . \n \n"
    "\n = Bridge = \n \n The bridge was built of stone .\n"
)


def write_language_data(folder: Path) -> Path:
    """Write the files of all tasks; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in LINES.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (folder / "piqa-valid-labels.lst").write_text("0\n1\n")
    (folder / "hellaswag_val_full.txt").write_text(HELLASWAG)
    (folder / "wikitext2-test.txt").write_text(WIKITEXT)
    return folder
