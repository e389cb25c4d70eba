"""The table of benchmarks and training sets: data, not code. `sources.py` reads it; docs/data.md says how each fact was checked.

A revision is the full commit of the hub repository that the facts below describe; None means unpinned, and the note says why.
None of these sets is part of this package: each has its own licence, and where a source states none the licence says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PROBLEM = ("problem", "question", "problem_statement", "Problem", "prompt")
ANSWER = ("answer", "final_answer", "Answer", "Short Answer", "expected_answer")
ID = ("id", "problem_idx", "unique_id", "ID", "Problem ID", "uuid")
UNDECLARED = "none declared"


@dataclass(frozen=True, slots=True)
class Fields:
    """Field names of a file's rows; of several names the first that is present counts."""

    problem: tuple[str, ...] = PROBLEM
    answer: tuple[str, ...] = ANSWER
    id: tuple[str, ...] = ID
    kind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """One benchmark or training set.

    hub, config, revision, split   where `datasets` finds it; hub None: only as a local file
    file, file_rows                its local name, and its rows there where they differ from the hub's
    fields                         field names, the hub's and the local file's
    shown_after                    the answer is what follows this mark ("####"), or the last "box", where there is one
    part                           only rows whose source, in one of `part_fields`, holds this word
    subset, subset_seed            training draws this many problems of the training side, the same ones in every run
    kind                           what the answers are, for the grader; None infers it from each reference
    rows                           how many rows the hub's split holds; None where no source says
    """

    name: str
    hub: str | None
    rows: int | None
    licence: str
    file: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    file_rows: int | None = None
    fields: Fields = Fields()
    shown_after: str = ""
    part: str = ""
    part_fields: tuple[str, ...] = ("source", "source_data", "dataset", "subset")
    kind: str | None = None
    training: bool = False
    subset: int | None = None
    subset_seed: int = 0
    note: str = ""


MATHARENA = "CC BY-NC-SA 4.0"
UNPINNED = "unpinned: no full commit could be verified"
MATH = DataSet(
    "math_train",
    "DigitalLearningGmbH/MATH-lighteval",
    7500,
    "MIT",
    "math_train.jsonl",
    revision="0530c78699ea5e8eb5530600900e1f328b48acad",
    file_rows=7474,
    fields=Fields(answer=("answer", "solution")),
    shown_after="box",
    training=True,
    note="MATH (Hendrycks et al., arXiv 2103.03874); the test split holds MATH-500",
)
GSM8K = DataSet(
    "gsm8k",
    "openai/gsm8k",
    1319,
    "MIT",
    "gsm8k_test.jsonl",
    config="main",
    revision="740312add88f781978c0658806c59bc2815b9866",
    split="test",
    shown_after="####",
    kind="number",
    note="GSM8K test (Cobbe et al., arXiv 2110.14168)",
)
DEEPSCALER = DataSet(
    "deepscaler",
    "agentica-org/DeepScaleR-Preview-Dataset",
    40315,
    "MIT",
    "deepscaler_train.jsonl",
    revision="b6ae8c60f5c1f2b594e2140b91c49c9ad0949e29",
    file_rows=38892,
    training=True,
    note="DeepScaleR-Preview: AIME to 2023, AMC, Omni-MATH, STILL; the hub repeats problems, and six answers there are empty",
)
PRINCIPIA_BENCH = DataSet(
    "principia_bench",
    "facebook/principia-bench",
    2241,
    "unverified: see the hub's card",
    "principia_bench.jsonl",
    split="test",
    fields=Fields(kind=("answer_type",)),
    note="unverified: revision, split, licence and count (2,241 at a third party, 2,558 in the authors' announcement)",
)
PRINCIPIA = DataSet(
    "principia_collection",
    "facebook/principia-collection",
    248743,
    "CC BY-NC-SA 4.0",
    "principia_collection.jsonl",
    revision="bb1db440788d15e9f8af8945e05a2cc119df1c9c",
    split="mathematical_object",
    fields=Fields(kind=("answer_type",)),
    training=True,
    note="Principia Collection, mathematical objects (the split `numerical` is another 305,656 rows)",
)


def part(name: str, word: str, rows: int) -> DataSet:
    """A part of PrincipiaBench: the rows of one source."""
    note = "unverified: the field that names a row's source, and the count (a third party's)"
    return replace(PRINCIPIA_BENCH, name=f"principia_bench_{name}", part=word, rows=rows, note=note)


def local(name: str, rows: int, licence: str, note: str, *, kind: str | None = None, file: str = "") -> DataSet:
    """A set for which only a local file is known."""
    return DataSet(name, None, rows, licence, file or f"{name}.jsonl", kind=kind, note=note)


ROWS = (
    DataSet(
        "aime24",
        "Maxwell-Jia/AIME_2024",
        30,
        "MIT by its card; problems by the MAA",
        "aime24.jsonl",
        revision="8d88b2876a82a080e2f172cc9b25d0d9d2cb4792",
        kind="number",
        note="AIME 2024 I and II; the revision that fixed I-5, I-6 and II-10",
    ),
    DataSet(
        "aime25",
        "MathArena/aime_2025",
        30,
        MATHARENA,
        "aime25.jsonl",
        revision="c94da77eb22bbd6439e62a323bec18493a421302",
        kind="number",
        note="AIME 2025 I and II",
    ),
    DataSet("hmmt_feb25", "MathArena/hmmt_feb_2025", 30, MATHARENA, "hmmt_feb25.jsonl", note=UNPINNED),
    DataSet("brumo25", "MathArena/brumo_2025", 30, MATHARENA, "brumo25.jsonl", note=UNPINNED),
    DataSet(
        "imo_answerbench",
        "Hwilner/imo-answerbench",
        400,
        "CC BY 4.0",
        "imo_answerbench.jsonl",
        revision="0258becbd00fc07d34862bc8539e61c8742f0d14",
        note="IMO-AnswerBench (Luong et al. 2025); a copy of google-deepmind/superhuman, whose second version fixed answers",
    ),
    DataSet(
        "olympiadbench",
        "Hothan/OlympiadBench",
        674,
        "Apache-2.0 by its card",
        "olympiadbench.jsonl",
        config="OE_TO_maths_en_COMP",
        revision="3b426ee1d587c71b495146dde9f3e995ee7ac59f",
        fields=Fields(answer=("answers", "final_answer", "answer")),
        note="OlympiadBench (He et al., arXiv 2402.14008): mathematics, text only, English, open-ended; one row has a tolerance",
    ),
    DataSet(
        "math500",
        "HuggingFaceH4/MATH-500",
        500,
        "MIT (MATH)",
        "math500.jsonl",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        split="test",
        note="500 problems of MATH's test split (Lightman et al., arXiv 2305.20050)",
    ),
    GSM8K,
    replace(
        GSM8K, name="gsm8k_train", rows=7473, file="gsm8k_train.jsonl", split="train", training=True, note="GSM8K train"
    ),
    PRINCIPIA_BENCH,
    part("realmath", "realmath", 632),
    part("physics", "physics", 110),
    part("arb", "arb", 47),
    part("supergpqa", "supergpqa", 1452),
    DEEPSCALER,
    replace(DEEPSCALER, name="deepscaler-10k", subset=10_000),
    PRINCIPIA,
    replace(PRINCIPIA, name="principia_collection-30k", subset=30_000),
    MATH,
    replace(
        MATH, name="math_test", rows=5000, file="math_test_typed.jsonl", file_rows=None, split="test", training=False
    ),
    DataSet(
        "amc23",
        "math-ai/amc23",
        40,
        UNDECLARED,
        "amc23.jsonl",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        split="test",
        kind="number",
        note="AMC 12 2023 A and B",
    ),
    DataSet(
        "minerva_math",
        "math-ai/minervamath",
        272,
        UNDECLARED,
        "minerva_math.jsonl",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        split="test",
        note="OCW problems of Minerva (Lewkowycz et al., arXiv 2206.14858)",
    ),
    DataSet(
        "aimo_aime", "AI-MO/aimo-validation-aime", 90, "Apache-2.0", "aimo_val_aime.jsonl", kind="number", note=UNPINNED
    ),
    DataSet("aimo_amc", "AI-MO/aimo-validation-amc", 83, "Apache-2.0", "aimo_val_amc.jsonl", note=UNPINNED),
    replace(
        local(
            "aime_1983_2023", 975, "MIT (rLLM); problems by the MAA", "AIME 1983 to 2023, for training", kind="number"
        ),
        training=True,
    ),
    local("comp_math_24_25", 256, "Apache-2.0", "competitions of 2024 and 2025, as in NeMo-Skills"),
    local("gaokao2023en", 385, UNDECLARED, "Gaokao 2023 in English; two answers are empty"),
    local("odyssey_math", 387, UNDECLARED, "MathOdyssey"),
    local("hardmath_mini", 366, "MIT", "HARDMath, asymptotics; 58 problem texts occur again with other answers"),
    local("scibench", 580, "MIT", "SciBench; answers are rounded numbers without their units"),
    local(
        "theoremqa", 747, "MIT", "TheoremQA without pictures; answers are rounded numbers, truth values, lists, choices"
    ),
    local(
        "supergpqa",
        1000,
        "ODC-BY",
        "SuperGPQA, 1,000 questions with options",
        kind="choice",
        file="supergpqa_rsa1000.jsonl",
    ),
)
TABLE = {row.name: row for row in ROWS}
