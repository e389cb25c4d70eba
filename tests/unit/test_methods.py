"""Methods are data: the table, what each demands of a config, methods of one's own, and that nothing else asks for a name."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paragator.config import Config, MethodConfig
from paragator.core import credit
from paragator.core.errors import UsageError
from paragator.core.methods import METHODS, CreditSettings, Method, method_named, register_method
from paragator.settings import load

SOURCE = Path(__file__).parents[2] / "src" / "paragator"
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, None]
PLAIN = CreditSettings()


@pytest.fixture(autouse=True)
def own_methods_go_again() -> Iterator[None]:
    table = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(table)


def half(rewards: Sequence[float | None]) -> list[float]:
    """A credit of one's own: half the distance from the mean of what is scored."""
    scored = [r for r in rewards if r is not None]
    mean = sum(scored) / len(scored)
    return [0.0 if r is None else (r - mean) / 2 for r in rewards]


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    assert list(METHODS.values()) == [
        Method("base", generate=None, aggregate=None, source="online"),
        Method("dr_grpo", generate="pass@1", aggregate=None, source="online"),
        Method("offline_aggregation", generate=None, aggregate="pass@1", source="offline"),
        Method("online_aggregation", generate=None, aggregate="pass@1", source="online"),
        Method("online_multitask", generate="pass@1", aggregate="pass@1", source="online"),
        Method("paragator", generate="pass@k", aggregate="pass@1", source="online"),
        Method("paragator_outcome", generate="outcome", aggregate="pass@1"),
        Method("paragator_rounds", generate="pass@k", aggregate="pass@1", rounds=2, between="pass@k"),
        Method("max_rl", generate="relative", aggregate="pass@1"),
        Method("spiral", generate="sets", aggregate="pass@1"),
        Method("selection", aggregate="pass@1", names=True),
        Method("pairwise", generate="pass@1", aggregate="pass@1", names=True, shown=2),
    ]
    assert list(METHODS) == [method.name for method in METHODS.values()]
    assert [name for name in METHODS if not METHODS[name].trains] == ["base"]


@pytest.mark.parametrize("name", METHODS)
def test_a_stage_asks_for_its_scheme(name: str) -> None:
    method = METHODS[name]
    assert (method.scheme("generate"), method.scheme("aggregate")) == (method.generate, method.aggregate)
    assert method.scheme("aggregate", last=False) == method.between


WRONG: dict[str, dict[str, Any]] = {
    "a method's name is 'a b'": {"name": "a b"},
    "generate = 'pass@2'; use pass@1, pass@k, relative, outcome, sets": {"generate": "pass@2"},
    "aggregate = 'outcome'; use pass@1, pass@k, relative, a function": {"aggregate": "outcome"},
    "source = 'both'; use 'online' or 'offline'": {"source": "both"},
    "recorded candidates are not trained on; set generate = None": {"generate": "pass@1", "source": "offline"},
    "'outcome' is what aggregations make of a candidate; set aggregate": {"generate": "outcome"},
    "rounds = 0; at least 1": {"rounds": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_method_that_cannot_be(message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("'", ".")) as caught:
        Method(**{"name": "mine", **WRONG[message]})
    assert "\n" not in str(caught.value)


# ---- what a method demands of a config -------------------------------------------------------------------------------

ROOM: dict[str, Any] = {"k": 4, "candidates": 16, "pools": 2, "recorded": True, "shown": 2}


@pytest.mark.parametrize("name", METHODS)
def test_with_room_every_method_runs(name: str) -> None:
    assert METHODS[name].refusal(**ROOM) is None


def test_pass_at_k_anywhere_needs_more_rollouts_than_k() -> None:
    refused = {name for name in METHODS if METHODS[name].refusal(**{**ROOM, "k": 16})}
    assert refused == {"paragator", "paragator_rounds"}
    between = Method("mine", None, "pass@1", rounds=2, between="pass@k")
    assert "method.k = 16 must be below rollout.candidates = 16" in str(between.refusal(**{**ROOM, "k": 16}))
    assert "rollout.candidates / rollout.pools = 4" in str(
        between.refusal(**{**ROOM, "pools": 4})
    )  # four aggregations of each pool
    assert METHODS["paragator"].refusal(**{**ROOM, "pools": 4}) is None  # its candidates are one group


def test_an_outcome_needs_several_pools_and_an_offline_method_recorded_ones() -> None:
    refused = {name: found for name in METHODS if (found := METHODS[name].refusal(**{**ROOM, "pools": 1}))}
    assert list(refused.values()) == [
        f"rollout.pools = 1: {name} compares candidates by the pools that hold them; take several"
        for name in ("paragator_outcome", "spiral")
    ]
    refused = {name: found for name in METHODS if (found := METHODS[name].refusal(**{**ROOM, "recorded": False}))}
    assert list(refused.values()) == [
        "method.recorded is not set: offline_aggregation needs the file that `paragator sample` wrote"
    ]


def test_naming_an_attempt_needs_a_prompt_that_asks_for_it_and_of_two_where_two_are_compared() -> None:
    refused = {name for name in METHODS if METHODS[name].refusal(**{**ROOM, "shown": None})}
    assert refused == {"selection", "pairwise"}
    assert "rollout.pool_size = 4: pairwise shows 2" in str(METHODS["pairwise"].refusal(**{**ROOM, "shown": 4}))
    with pytest.raises(UsageError, match=r"model.template: selection needs a prompt that asks for a label"):
        load(Config, None, ["--method.name=selection"])
    assert load(Config, None, ["--method.name=selection", "--model.template=chat-select"]).model.templates().names


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (["--method.k=16"], Method("mine", half, "pass@k")),
        (["--rollout.pools=1"], Method("mine", "outcome", half)),
        ([], Method("mine", None, half, "offline")),
    ],
)
def test_a_config_is_asked_what_its_method_demands(flags: list[str], method: Method) -> None:
    register_method(method)
    with pytest.raises(UsageError, match=r"must be below|take several|is not set"):
        load(Config, None, ["--method.name=mine", *flags])


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_config_can_name_each_of_the_table_and_what_is_registered() -> None:
    for name in METHODS:
        assert MethodConfig(name=name).definition is METHODS[name]
    with pytest.raises(UsageError, match=r"method.name = 'mine' is not a method"):
        load(Config, None, ["--method.name=mine"])
    mine = register_method(Method("mine", half))
    assert load(Config, None, ["--method.name=mine"]).method.definition is mine is METHODS["mine"]


def test_an_unknown_name_is_told_what_comes_close() -> None:
    with pytest.raises(UsageError, match=r"^'paragatr' is not a method; did you mean paragator"):
        method_named("paragatr")
    with pytest.raises(UsageError, match=r"^'zzz' is not a method; known: base, dr_grpo, .*pairwise$"):
        method_named("zzz")


def test_a_name_has_one_definition() -> None:
    mine = register_method(Method("mine", half))
    assert register_method(Method("mine", half)) == mine
    with pytest.raises(UsageError, match="method 'mine' exists with another definition; choose another name"):
        register_method(Method("mine", "pass@1"))
    with pytest.raises(UsageError, match="'paragator' exists"):
        register_method(Method("paragator", half))
    assert METHODS["mine"] == mine


def test_a_cell_of_a_notebook_can_be_run_again() -> None:
    """It defines a new function of the same name, perhaps another one: the last counts."""
    cell = "def mine(rewards):\n    return [{} for _ in rewards]\nregister_method(Method('cell', mine))"
    for number in ("0.0", "1.0"):
        exec(cell.format(number), {"Method": Method, "register_method": register_method, "__name__": "__main__"})  # noqa: S102
    assert METHODS["cell"].credit(METHODS["cell"].generate, [1.0], PLAIN) == [1.0]  # type: ignore[arg-type]


def package(folder: Path, name: str, module: str, body: str) -> None:
    """An installed package that offers a method `name`, as far as importlib.metadata can tell."""
    (folder / f"{module}.py").write_text(body)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[paragator.methods]\n{name} = {module}:METHOD\n")


def test_an_installed_package_offers_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "from paragator.core.methods import Method\nMETHOD = Method('apart', lambda rewards: [0.0] * len(rewards))\n"
    package(tmp_path, "apart", "offers_apart", body)
    package(tmp_path, "named_otherwise", "offers_another", body)
    package(tmp_path, "broken", "offers_broken", "import no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load(Config, None, ["--method.name=apart"])
    assert config.method.definition is METHODS["apart"] and callable(METHODS["apart"].generate)
    with pytest.raises(UsageError, match=r"did you mean apart"):
        method_named("apar")
    with pytest.raises(UsageError, match=r"'named_otherwise' is offered by offers_another:METHOD.*make it Method"):
        method_named("named_otherwise")
    with pytest.raises(
        UsageError, match=r"'broken' is offered by offers_broken:METHOD, which cannot be loaded: No mod"
    ):
        method_named("broken")


# ---- credit ----------------------------------------------------------------------------------------------------------


def by(scheme: Any, rewards: Sequence[float | None] = REWARDS, settings: CreditSettings = PLAIN) -> list[float]:
    return Method("mine").credit(scheme, rewards, settings)


def test_schemes_are_those_of_core() -> None:
    assert by("pass@1") == by("outcome") == credit.pass_at_1(REWARDS)
    assert by("relative") == credit.max_rl(REWARDS)
    assert by("sets") == [0.0 if r is None else r for r in REWARDS]  # credit already, see `credit.spiral`
    assert by("pass@k", settings=CreditSettings(k=3)) == credit.pass_at_k(REWARDS, 3)


def test_k_mean_and_scale_each_change_credit() -> None:
    base = by("pass@k", settings=CreditSettings(k=3))
    assert by("pass@k", settings=CreditSettings(k=2)) != base
    assert by("pass@k", settings=CreditSettings(k=3, mean="reward")) != base
    assert by("pass@k", settings=CreditSettings(k=3, scale="std")) != base
    scaled = by("pass@1", settings=CreditSettings(scale="std"))
    assert scaled == credit.pass_at_1(REWARDS, scale="std") != by("pass@1")


def test_the_settings_are_those_of_the_config() -> None:
    assert MethodConfig().credit_settings == CreditSettings() == CreditSettings(4, "subset", None)
    assert MethodConfig(k=2, mean="reward", scale="std").credit_settings == CreditSettings(2, "reward", "std")


def test_k_and_mean_leave_pass_at_1_alone() -> None:
    assert by("pass@1", settings=CreditSettings(k=2, mean="reward")) == by("pass@1")


def test_rewards_other_than_0_and_1_take_the_continuous_form() -> None:
    rewards = [0.0, 0.5, 1.0, 0.25, None]
    assert by("pass@k", rewards, CreditSettings(k=2)) == credit.max_at_k(rewards, 2)


def test_the_ablation_warns_once_a_run_not_once_a_group() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by("pass@k", settings=CreditSettings(k=3, mean="reward"))


def test_a_credit_function_of_ones_own_is_asked_about_groups_with_a_reward() -> None:
    assert by(half, [1.0, None, 0.0]) == [0.25, 0.0, -0.25]
    assert by(half, [None, None]) == [0.0, 0.0]  # else it would divide by zero


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.0], "method 'mine': its credit function gave 1 numbers for 2 rewards; return one for each"),
        ([math.nan, 0.0], "method 'mine': its credit function gave nan for reward 1.0; return finite numbers"),
        ([0.5, 0.5], r"method 'mine': its credit function gave 0.5 to an unscored rollout \(reward None\); give it 0"),
        (None, "method 'mine': its credit function gave None; return one number for each reward"),
        (["a", "b"], r"method 'mine': its credit function gave \['a', 'b'\]; return one number for each reward"),
    ],
)
def test_what_it_gives_is_checked(answer: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        by(lambda rewards: answer, [1.0, None])


# ---- nothing else asks for a name ------------------------------------------------------------------------------------

WORDS_TOO = {"base", "paragator", "max_rl", "spiral", "selection", "pairwise"}
"""Names that are ordinary words here as well: they may be written, but nothing may be compared with them."""
MAY_SAY = ("core/methods.py", "config.py", "cli/")
"""The table, the config's default, and the command line's help."""


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_no_other_file_names_a_method() -> None:
    found = [
        (file, node.lineno, name)
        for file, tree in parsed()
        if not file.startswith(MAY_SAY)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in METHODS.keys() - WORDS_TOO
        if name in node.value
    ]
    assert not found


def test_nothing_is_compared_with_a_name() -> None:
    """Neither a config's method.name with anything, nor anything with the name of a method."""
    found = []
    for file, tree in parsed():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare | ast.match_case):
                continue
            names = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in METHODS]
            asked = "method.name" in re.sub(r"METHODS\[[\w.]*method\.name\]", "", ast.unparse(node))
            if names or asked:
                found.append(f"{file}: {ast.unparse(node)}")
    assert not found
