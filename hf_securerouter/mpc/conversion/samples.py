# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Built-in sample inputs, on which a model's ranges are measured if its owner gives none.

They are texts of several kinds and scripts, and rows of random tokens up to the longest input. A model's own data can
reach further; so built-in samples only widen bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor


TEXTS: tuple[str | tuple[str, str], ...] = (
    "No.",
    "It rained all day, and we stayed in.",
    "A slow, clumsy film with one great scene near the end that almost saves it.",
    "Absolutely wonderful!!! I laughed, I cried, I called my mother afterwards.",
    "The committee shall submit its annual report to the board within ninety days after the end of the fiscal year, "
    "unless the board grants an extension in writing.",
    "Patient is a 54-year-old with type 2 diabetes; HbA1c 8.1 %, BP 142/91 mmHg, metformin 1000 mg b.i.d.",
    "Net sales rose 3.4% to $1,284.7m in Q2 (2019: $1,242.1m); EPS came to $0.87, against a forecast of $0.91.",
    "def mean(xs): return sum(xs) / len(xs) if xs else float('nan')  # 0 / 0",
    "https://example.org/a/b?c=1&d=%20#top -- SELECT * FROM t WHERE id IN (1, 2, 3);",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 13 3.14159 2.71828 1e-9 -273.15",
    "Der Zug nach Köln hatte vierzig Minuten Verspätung, weil ein Baum auf den Gleisen lag.",
    "¿Cuándo llega el próximo autobús? Mañana por la mañana, según el horario.",
    "今天天气很好,我们去公园散步吧。",
    "明日の会議は午後三時からです。資料を忘れないでください。",
    "Сегодня в музее открылась выставка старинных карт.",
    "the the the the the the the the the the the the the the the the",
    "?!... --- ,,, ;; (( )) \"\" '' &&& ***",
    ("How many people live in the city?", "The city has about 340,000 inhabitants, a third of them students."),
    ("A man is playing a guitar on a stage.", "Nobody is making music."),
    ("The company denied the report.", "The report was denied by the company on Tuesday."),
)


def random_tokens(vocabulary: int, longest: int) -> list[Tensor]:
    """Rows of token ids drawn at random, the same in every run: a few short ones and one of `longest` tokens.

    Args:
        vocabulary (`int`): Size of the vocabulary.
        longest (`int`): Tokens of the longest input.

    Returns:
        `list[torch.Tensor]`: int64, (rows, length) for each length.
    """
    generator = torch.Generator().manual_seed(0)  # samples, not secrets
    shapes = {(4, min(16, longest)), (2, min(64, longest)), (1, longest)}
    return [torch.randint(vocabulary, shape, generator=generator) for shape in sorted(shapes)]
