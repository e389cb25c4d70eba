"""The evaluation table against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from statistics import fmean, pstdev, quantiles

import pytest

from fakes import fake_evaluation
from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, decode, encode
from paragator.results import EvalResult
from paragator.stats.measures import MEASURES, OF_PARTS, REWARD, Minus, vote_sizes
from paragator.stats.mending import apart, distance, mending
from paragator.stats.resample import average, over_seeds, resample
from paragator.stats.sheet import show_interval
from paragator.stats.table import EvalTable, table

VERDICTS = {"r": "correct", "w": "incorrect", "?": "unscored"}
PROMPT = Prompt("p")


Grades = tuple[Grade | None, ...]


def group(spec: str, pool: tuple[int, ...] = (), texts: list[str] | None = None) -> tuple[Group, Grades]:
    """A group from letters: r right, w wrong, ? unscored, x failed, t right and truncated; answers "ok" or "bad"."""
    outputs: list[Completion | Failure] = []
    grades: list[Grade | None] = []
    for i, letter in enumerate(spec):
        if letter == "x":
            outputs.append(Failure("down"))
            grades.append(None)
            continue
        text = texts[i] if texts else f"{letter}{i}{'agg' if pool else ''}"
        finish = "length" if letter == "t" else "stop"
        outputs.append(Completion(text, finish, token_ids=tuple(range(i + 1))))  # type: ignore[arg-type]
        verdict = VERDICTS[letter.replace("t", "r")]
        answer = {"correct": "ok", "incorrect": "bad", "unscored": None}[verdict]
        grades.append(Grade(verdict, answer))  # type: ignore[arg-type]
    stage = "aggregate" if pool else "generate"
    made = Group(PROMPT, tuple(outputs), stage=stage, pool=pool, num_prompt_tokens=7)  # type: ignore[arg-type]
    return made, tuple(grades)


def record(name: str, *rounds: str, texts: list[str] | None = None, failure: str | None = None) -> Graded:
    """A trace of one pool a round, which shows the whole round before."""
    built = []
    for t, spec in enumerate(rounds):
        shown = sum(letter != "x" for letter in rounds[t - 1]) if t else 0
        built.append(group(spec, tuple(range(shown)), texts if t else None))
    trace = Trace(Problem(name, name), Plan.method(4, 2), 0, tuple((g,) for g, _ in built), failure)
    return Graded(trace, tuple((grades,) for _, grades in built))


RECORDS = [record("a", "rwww", "rrww", "rrrr"), record("b", "wwww", "rwww", "wwww")]


def means(found: EvalTable, measure: str, minus: Minus = "") -> list[float]:
    return [found.cell(measure, t, minus).mean for t in range(found.num_rounds)]


def test_hand_computed() -> None:
    found = table(RECORDS)
    assert (found.k, found.problems, found.traces, found.num_rounds) == (4, 2, 2, 3)
    assert means(found, "pass_at_1") == [1 / 8, 3 / 8, 1 / 2]
    assert means(found, "pass_at_k") == [1 / 2, 1, 1 / 2]
    assert means(found, "oracle") == [1 / 2, 1, 1 / 2]
    assert means(found, "maj_at_k") == [0, 1 / 4, 1 / 2]  # rrww ties: half
    assert means(found, "pass_at_1", "first")[1:] == [1 / 4, 3 / 8]
    assert means(found, "pass_at_1", "previous")[1:] == [1 / 4, 1 / 8]
    gain = found.cell("pass_at_1", 1, "first")
    assert (gain.low, gain.high) == (1 / 4, 1 / 4)  # the same for both problems
    assert math.isnan(found.cell("pass_at_1", 0, "first").mean)
    first = found.cell("pass_at_1", 0)
    assert (first.low, first.high) == (0, 1 / 4)


def test_tokens_by_round() -> None:
    found = table(RECORDS)  # completions of 1, 2, 3 and 4 tokens, and a prompt of 7 a group
    assert means(found, "tokens") == [2.5] * 3
    assert means(found, "generated") == [10] * 3
    assert means(found, "generated_so_far") == [10, 20, 30]
    assert means(found, "prompted_so_far") == [7, 14, 21]
    assert [(n, cell.mean) for n, cell in found.votes()] == [(1, 1 / 8), (2, 1 / 8), (4, 0)]


def test_votes_among_many_candidates_leave_sizes_out() -> None:
    assert vote_sizes(6) == [1, 2, 4, 6] and vote_sizes(0) == []
    assert vote_sizes(256) == [1, 2, 4, 8, 16, 32, 256]


def test_tokens_that_are_not_known_are_not_measured() -> None:
    row = encode(record("a", "rw", "rr"))
    for groups in row["rounds"]:
        for one in groups:
            del one["num_prompt_tokens"]  # as older records
            for output in one["outputs"]:
                del output["num_tokens"], output["thinking"]
    found = table([decode(row)])
    assert means(found, "generated_so_far") == [3, 6]  # by their ids
    assert all(math.isnan(x) for x in means(found, "prompted_so_far"))
    for groups in row["rounds"]:
        for one in groups:
            for output in one["outputs"]:
                output["token_ids"] = None
    found = table([decode(row)])
    assert all(math.isnan(x) for name in ("tokens", "generated", "generated_so_far") for x in means(found, name))
    assert found.to_dict()["rounds"][0]["tokens"] is None
    assert means(found, "pass_at_1") == [1 / 2, 1]


def test_pool_diagnostics_are_means_over_pools() -> None:
    found = table(RECORDS)
    assert means(found, "distinct_answers")[1] == 1.5
    assert means(found, "pool_has_correct")[1:] == [0.5, 1]
    assert means(found, "recovery")[1] == 1 / 4
    assert means(found, "destruction")[1:] == [1 / 2, 1 / 2]
    assert math.isnan(means(found, "recovery")[2]) and math.isnan(means(found, "recovery")[0])
    assert math.isnan(means(found, "majority_lost")[2])  # half of a pool is no majority
    assert means(table([record("a", "rrrw", "rrrw")]), "majority_lost")[1] == 1 / 4
    assert means(found, "copy_rate")[1] == 0
    copied = record("a", "rwww", "rrww", texts=["r0", " w1 ", "new", "<think>x</think> w2"])
    assert means(table([copied]), "copy_rate")[1] == 3 / 4


def test_distance_is_levenshteins() -> None:
    """Against the table of Wagner and Fischer."""
    draw = random.Random(5)
    for _ in range(300):
        a, b = ([draw.choice("abc") for _ in range(draw.randrange(9))] for _ in range(2))
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            above, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
        assert distance(a, b) == row[-1]


def test_what_an_aggregation_takes_from_attempts() -> None:
    pool = ["1 + 2 = 3 , 4 + 5 = 9", "1 + 2 = 4 , 4 + 5 = 8"]
    combined, copied, new = "1+2=3, 4+5=8", pool[0], "9 - 9 = 0"
    assert mending(pool, [copied]) == {"edits": 0.0, "steps_taken": 1.0, "steps_from_one": 1.0}
    assert mending(pool, [combined]) | {"edits": 0} == {"edits": 0, "steps_taken": 1.0, "steps_from_one": 0.5}
    assert mending(pool, ["1 + 2 = 3 , 4 + 5 = 8"])["edits"] == pytest.approx(1 / 11)
    assert mending(pool, [new])["steps_taken"] == 0.0 and mending(pool, [copied, new])["steps_from_one"] == 0.5
    assert all(map(math.isnan, mending([" "], [copied]).values())) and math.isnan(apart("a " * 4001, "a"))


def test_aggregations_by_right_members_of_their_pool() -> None:
    found = table(
        [
            record("a", "rwww", "rrww"),
            record("b", "wwww", "rwww"),
            record("c", "rrrr", "rrrw"),
            record("d", "?rrr", "rrrr"),
        ]
    )
    assert [(n, cell.mean) for n, cell in found.by_count("by_right") if not math.isnan(cell.mean)] == [
        (0, 0.25),
        (1, 0.5),
        (4, 0.75),
    ]
    assert found.to_dict()["by_right"]["1"]["mean"] == 0.5 and "by_right" not in table([record("a", "rw")]).to_dict()


def test_repeats_of_a_problem_are_one_cluster() -> None:
    found = table([record("a", "rrrr"), record("a", "rrrr"), record("a", "rrrr"), record("b", "wwww")])
    cell = found.cell("pass_at_1", 0)
    assert (cell.mean, cell.low, cell.high) == (1 / 2, 0, 1)
    assert (found.problems, found.traces) == (2, 4)


def test_unscored_is_nan_and_failures_are_counted() -> None:
    found = table([record("a", "?r?x"), record("b", "????"), record("c", "tw", failure="too few")])
    assert means(found, "pass_at_1")[0] == pytest.approx((1 + 1 / 2) / 2)
    assert means(found, "oracle")[0] == 1
    assert means(found, "failed")[0] == pytest.approx(1 / 4 / 3)
    assert means(found, "unscored")[0] == pytest.approx((2 / 3 + 1) / 3)
    assert means(found, "truncated")[0] == pytest.approx(1 / 2 / 3)
    assert math.isnan(means(found, "pass_at_k")[0])  # no trace has four scored solutions
    nothing = table([record("b", "????")])
    assert all(math.isnan(means(nothing, name)[0]) for name in ("pass_at_1", "pass_at_k", "maj_at_k", "oracle"))


def test_a_round_that_a_failed_problem_missed_counts_as_failed() -> None:
    stopped = record("c", "xxxr", failure="round 0 left 1 solutions, 2 are needed")
    found = table([record("a", "rwww", "rrww"), stopped])
    assert means(found, "failed") == [3 / 8, 1 / 2]
    assert means(found, "pass_at_1")[1] == 1 / 2
    assert means(found, "pass_at_1", "first")[1] == 1 / 4  # paired over problem a alone


def test_k_above_the_samples_is_a_dash() -> None:
    found = table(RECORDS, k=8)
    printed = found.sheets()[0].cells()
    assert printed[0][2:4] == ["pass@8", "maj@8"]
    assert all(row[2:4] == ["-", "-"] for row in printed[1:])
    assert found.to_dict()["rounds"][0]["pass_at_k"] is None


def test_a_reward_function_does_not_change_accuracy() -> None:
    one = record("a", "rw")
    valued = Graded(one.trace, (((Grade("correct", "ok", value=0.3), Grade("incorrect", "bad", value=7.0)),),))
    assert means(table([valued]), "pass_at_1") == [1 / 2]


def test_to_dict_is_strict_json() -> None:
    text = json.dumps(table([record("a", "?r?x", "x???")], k=4).to_dict(), allow_nan=False)
    row = json.loads(text)["rounds"][0]
    assert row["pass_at_1"] == {"mean": 1.0, "low": None, "high": None}
    later = json.loads(text)["rounds"][1]
    assert set(later) == {"round", *MEASURES, "minus_first", "minus_previous"} - {REWARD, *OF_PARTS}
    assert set(later["minus_first"]) == {"pass_at_1", "pass_at_k", "maj_at_k", "oracle", "all_of_k"}


def test_sheets_are_rectangular_and_in_percent() -> None:
    sheets = table(RECORDS).sheets()
    assert [sheet.name for sheet in sheets] == ["accuracy", "tokens and failures", "pools"]
    assert all(len({len(row) for row in sheet.cells()}) == 1 for sheet in sheets)
    printed = sheets[0].cells()
    assert printed[1][:4] == ["0", "12.5 [0.0, 25.0]", "50.0 [0.0, 100.0]", "0.0 [0.0, 0.0]"]
    assert printed[1][6:] == ["-", "-"] and printed[2][7] == "+25.0 [+25.0, +25.0]"
    assert len({len(line) for line in sheets[0].text().splitlines()}) == 1
    assert show_interval(None) == "-"
    assert [sheet.name for sheet in table([record("a", "rw")]).sheets()] == ["accuracy", "tokens and failures"]


def test_errors() -> None:
    with pytest.raises(UsageError, match="no records"):
        table([])
    with pytest.raises(UsageError, match="k = 0"):
        table(RECORDS, k=0)


# ---- resampling ------------------------------------------------------------------------------------------------------


def slow_bootstrap(values: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """The mean and its 95% percentile interval, one draw of the problems after the other; NaN is left out."""
    known, rng = [v for v in values if not math.isnan(v)], random.Random(0)
    means = sorted(fmean(rng.choices(known, k=len(known))) for _ in range(draws))
    cuts = quantiles(means, n=40, method="inclusive")
    return fmean(known), cuts[0], cuts[-1]


def test_the_vectorised_bootstrap_agrees_with_a_slow_one_and_with_the_normal_interval() -> None:
    rng = random.Random(5)
    ease = [rng.random() for _ in range(150)]
    columns = [[float(rng.random() < e) for e in ease], [rng.random() + e for e in ease]]
    columns.append([math.nan if rng.random() < 0.3 else value for value in columns[1]])
    for column, found in zip(columns, resample(columns, draws=4000), strict=True):
        ours, (mean, low, high) = found.interval(), slow_bootstrap(column)
        assert ours.mean == pytest.approx(mean, abs=1e-12)
        assert ours.low == pytest.approx(low, abs=0.06 * (high - low))
        assert ours.high == pytest.approx(high, abs=0.06 * (high - low))
        known = [value for value in column if not math.isnan(value)]
        half = 1.96 * pstdev(known) / math.sqrt(len(known))
        assert (mean - ours.low, ours.high - mean) == pytest.approx((half, half), rel=0.15)


def test_the_difference_of_two_samplings_is_paired() -> None:
    rng = random.Random(6)
    a = [rng.random() for _ in range(100)]
    b = [value + 0.1 + 0.01 * rng.random() for value in a]
    both = resample([a, b])
    found = (both[1] - both[0]).interval()
    slow = slow_bootstrap([y - x for x, y in zip(a, b, strict=True)])
    assert (found.mean, found.low, found.high) == pytest.approx(slow, abs=3e-4)
    apart = (resample([b])[0] - resample([a])[0]).interval()  # the same problems are drawn in another call
    assert (apart.low, apart.high) == pytest.approx((found.low, found.high), abs=1e-12)


def test_too_few_problems_have_no_interval() -> None:
    for column in ([0.5], [0.5, math.nan]):
        one = resample([column])[0].interval()
        assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(resample([[math.nan, math.nan]])[0].interval().mean)


def test_chunks_change_no_draw_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paragator.stats.resample.CHUNK", 100)
    found = resample([[0.0, 1.0] * 20], draws=501)[0]
    assert found.draws.shape == (501,)
    assert 0.3 < found.interval().low < 0.5 < found.interval().high < 0.7


def test_seeds_widen_an_interval_by_what_they_differ() -> None:
    problems = [0.0, 1.0] * 50
    alike, apart = (
        over_seeds(resample([[value + s * shift for value in problems] for s in range(4)])).interval()
        for shift in (0.0, 0.2)
    )
    alone = resample([problems])[0].interval()
    assert (alike.mean, alike.low, alike.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert apart.mean == pytest.approx(alone.mean + 0.3)
    assert apart.high - apart.low > 1.2 * (alone.high - alone.low)


def test_the_average_needs_every_benchmark() -> None:
    a, b = resample([[0.0, 1.0, 0.0, 0.0]])[0], resample([[1.0] * 9], seed=(1,))[0]
    found = average([a, b])
    assert found is not None and found.mean == pytest.approx((0.25 + 1) / 2)
    assert found.interval().high == pytest.approx((a.interval().high + 1) / 2)
    assert average([a, None]) is None and average([]) is None


def test_a_terminal_of_80_columns_shows_accuracy_and_wide_shows_all() -> None:
    result = EvalResult(fake_evaluation(0.1))
    narrow, wide = result.text(), result.text(wide=True)
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    assert "pass@1" in narrow and "maj@4" in narrow and "tokens" not in narrow
    assert "tokens" in wide and "pass@1 - round 0" in wide
    sheet = result.table().sheets()[0]
    assert sheet.text(1).splitlines()[0].split() == ["round", "pass@1"] and sheet.text() == sheet.text(1000)
