"""Checkpoints on disk: the order of writes, syncs and renames; what is refused; which ones stay."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from paragator.core.errors import RunError
from paragator.training import checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16)}
MOMENTS = {"a.weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}}
NAMES = ("weights.safetensors", "optimizer.safetensors", "meta.json", "manifest.json")


def write(folder: Path, number: int) -> Path:
    path = folder / f"step_{number}"
    checkpoint.save(path, WEIGHTS, MOMENTS, {"step": number})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Types too; a transposed tensor, one that is a view, and one that needs a gradient are whole ones on disk."""
    odd = {
        "t": torch.arange(6.0).reshape(2, 3).T,
        "view": torch.arange(8.0)[2:4],
        "p": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "step_1"
    checkpoint.save(path, {**WEIGHTS, **odd}, MOMENTS, {"step": 1, "pools": {"x": [1, 2]}})
    weights, moments, meta = checkpoint.read(path)
    assert meta == {"step": 1, "pools": {"x": [1, 2]}} == checkpoint.read_meta(path)
    assert weights.keys() == {*WEIGHTS, *odd} and moments.keys() == MOMENTS.keys()
    for name, tensor in {**WEIGHTS, **odd}.items():
        assert weights[name].dtype == tensor.dtype and torch.equal(weights[name], tensor.detach())
    assert all(torch.equal(moments["a.weight"][kind], value) for kind, value in MOMENTS["a.weight"].items())


def test_all_is_on_disk_before_it_is_seen_and_its_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(handle: int) -> None:
        found = os.fstat(handle)
        (path,) = (path for path in tmp_path.rglob("*") if os.path.samestat(path.stat(), found))
        told.append(("sync", str(path.relative_to(tmp_path))))
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        told.append(("rename", f"{path.name} {target.name}"))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path / "run" / "checkpoints", 7)
    at = told.index(("rename", "step_7.tmp step_7"))
    before, after = told[:at], told[at + 1 :]
    temporary = "run/checkpoints/step_7.tmp"
    assert sorted(before[:-1]) == sorted(("sync", f"{temporary}/{name}") for name in NAMES)
    assert before[-1] == ("sync", temporary)
    assert after == [("sync", "run/checkpoints"), ("sync", "run")]


def test_a_sync_says_what_it_could_not_and_leaves_folders_where_they_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    opened: list[int] = []

    def full(handle: int) -> None:
        opened.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(OSError) as found:
            checkpoint.sync(path)
        assert (found.value.errno, found.value.strerror) == (28, "No space left on device")
        assert found.value.filename == str(path)
    for handle in opened:
        with pytest.raises(OSError):
            os.fstat(handle)  # closed
    monkeypatch.setattr(os, "name", "another")
    checkpoint.sync(tmp_path)
    with pytest.raises(OSError, match="No space"):
        checkpoint.sync(tmp_path / "file")


def test_an_error_while_writing_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of the same step."""
    path = write(tmp_path, 1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"^[^\n]*step_1 cannot be written \(No space"):
        patch.setattr(os, "fsync", full)
        write(tmp_path, 1)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]
    with pytest.raises(RunError) as refused:
        checkpoint.save(path, {"a": torch.ones(1)}, {"a": {"exp_avg": torch.tensor([float("inf")])}}, {})
    assert str(refused.value) == (
        f"{path} is not written, since exp_avg/a is not finite; the checkpoint before it stays: start again with a lower "
        "optimizer.lr"
    )
    with pytest.raises(RunError, match=r"is not written, since a is not finite"):
        checkpoint.save(path, {"a": torch.tensor([float("nan")])}, {}, {})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_step_is_written_again_over_leftovers(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    (path / "weights.safetensors").write_bytes(b"broken")
    for name in ("step_1.tmp", "step_1.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
    write(tmp_path, 1)
    assert {file.name for file in path.iterdir()} == set(NAMES) and checkpoint.read(path)[2] == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]


def test_the_manifest_has_what_other_tools_compute(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert json.loads((path / "manifest.json").read_text()) == {
        "format": 2,
        "files": {
            name: {"bytes": len(data := (path / name).read_bytes()), "sha256": hashlib.sha256(data).hexdigest()}
            for name in NAMES[:3]
        },
    }


def refusal(path: Path, kind: type[RunError] = RunError) -> str:
    with pytest.raises(RunError) as found:
        checkpoint.read(path)
    assert type(found.value) is kind
    return str(found.value)


def test_what_is_refused_is_said_in_one_line(tmp_path: Path) -> None:
    """A file is missing, longer, or no file; the hashes are right and the tensors are not; there is no manifest."""
    broken = checkpoint.BrokenCheckpoint
    for number, name in enumerate(NAMES[:3]):
        path = write(tmp_path, number)
        (path / name).write_bytes((path / name).read_bytes() + b" " * 2000)
        size = (path / name).stat().st_size
        assert refusal(path, broken) == (
            f"checkpoint {path} is not whole: {name} has {size:,} bytes, others than were written"
        )
        (path / name).unlink()
        assert refusal(path, broken) == f"checkpoint {path} is not whole: {name} is missing"
        (path / name).mkdir()
        assert refusal(path) == f"checkpoint {path} cannot be read: {path / name}: Is a directory"
    path = write(tmp_path, 7)
    (path / "weights.safetensors").write_bytes(b"no tensors")
    note = json.loads((path / "manifest.json").read_text())
    note["files"]["weights.safetensors"] = checkpoint.fingerprint(path / "weights.safetensors")
    (path / "manifest.json").write_text(json.dumps(note))
    assert refusal(path).startswith(f"checkpoint {path} cannot be read: ")
    (path / "manifest.json").unlink()
    assert refusal(path) == (
        f"checkpoint {path} is of an older version of paragator (it has no manifest.json) and cannot be resumed; "
        "use --overwrite or another --name"
    )
    assert refusal(tmp_path / "step_8", broken) == (
        f"checkpoint {tmp_path / 'step_8'} is not whole: manifest.json is missing"
    )


def parameters(start: float = 0.0) -> dict[str, torch.nn.Parameter]:
    """A name with a stroke in it too; the first one is never trained."""
    return {
        name: torch.nn.Parameter(torch.linspace(start, 1.0, 6).reshape(shape))
        for name, shape in (("idle", (6,)), ("b/weight", (2, 3)), ("a", (6,)))
    }


def trained(named: dict[str, torch.nn.Parameter], *groups: str, steps: int = 1) -> torch.optim.AdamW:
    """An optimiser with a group for each name, after steps whose gradients differ by parameter."""
    optimizer = torch.optim.AdamW([{"params": [named[name]], "lr": 0.1 * len(name)} for name in groups])
    for step in range(steps):
        for power, name in enumerate(("a", "b/weight"), 1):
            named[name].grad = (named[name].detach() + step) ** power
        optimizer.step()
    return optimizer


def test_an_optimiser_continues_bit_for_bit_however_it_is_grouped(tmp_path: Path) -> None:
    """State goes by name: what is not trained has none, and settings of groups are the new optimiser's."""
    first = parameters()
    optimizer = trained(first, "idle", "b/weight", "a", steps=2)
    moments = checkpoint.moments_of(optimizer, first)
    assert moments.keys() == {"a", "b/weight"}
    assert all(kinds.keys() == {"step", "exp_avg", "exp_avg_sq"} for kinds in moments.values())
    checkpoint.save(tmp_path / "step_2", first, moments, {"step": 2})
    again = parameters(start=5.0)
    resumed = trained(again, "a", "b/weight", "idle", steps=0)
    assert checkpoint.read_into(tmp_path / "step_2", again, resumed) == {"step": 2}
    for name, parameter in first.items():
        assert torch.equal(again[name], parameter) and again[name].requires_grad
    back = checkpoint.moments_of(resumed, again)
    assert back.keys() == moments.keys()
    for name, kinds in moments.items():
        assert all(torch.equal(back[name][kind], value) for kind, value in kinds.items())
    for named, made in ((first, optimizer), (again, resumed)):
        for name in ("a", "b/weight"):
            named[name].grad = torch.ones_like(named[name])
        made.step()
    assert all(torch.equal(again[name], parameter) for name, parameter in first.items())
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx([0.1, 0.8, 0.4])


@pytest.mark.parametrize("other", [
    {"a": torch.zeros(6)}, {"idle": torch.zeros(6), "b/weight": torch.zeros(3, 2), "a": torch.zeros(6)},
    {"idle": torch.zeros(6), "b/weight": torch.zeros(2, 3), "c": torch.zeros(6)}, {},
])  # fmt: skip
def test_tensors_of_another_model_are_refused_and_nothing_is_changed(
    tmp_path: Path, other: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "step_1"
    checkpoint.save(path, other, {}, {})
    named = parameters()
    with pytest.raises(RunError) as found:
        checkpoint.read_into(path, named, trained(named, "a", steps=0))
    assert str(found.value) == (f"checkpoint {path} is of another model: its tensors differ; use the model of that run")
    assert all(torch.equal(named[name], value) for name, value in parameters().items())


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("at", [0, -1])
def test_a_bit_that_flipped_is_seen(tmp_path: Path, name: str, at: int) -> None:
    file = write(tmp_path, 1) / name
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(checkpoint.BrokenCheckpoint, match=rf"step_1 is not whole: {name} "):
        checkpoint.read(tmp_path / "step_1")


def test_another_layout_is_refused_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    note = json.loads((path / "manifest.json").read_text())
    assert note["format"] == 2 and note["files"].keys() == set(NAMES[:3])
    (path / "manifest.json").write_text(json.dumps({**note, "format": 3}))
    with pytest.raises(RunError, match="has format 3, not 2"):
        checkpoint.read(path)
    for text in ("[]", '{"format": 2}', '{"format": 2, "files": []}', "null"):
        (path / "manifest.json").write_text(text)
        with pytest.raises(checkpoint.BrokenCheckpoint, match=r"manifest\.json was changed or cut"):
            checkpoint.read(path)


def test_steps_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "none") == [] and checkpoint.newest(tmp_path) is None
    assert checkpoint.newest_meta(tmp_path) == {}
    for number in (9, 10, 2):
        write(tmp_path, number)
    (tmp_path / "step_x").mkdir()
    assert [checkpoint.number_of(path) for path in checkpoint.steps(tmp_path)] == [2, 9, 10]
    assert checkpoint.newest(tmp_path) == tmp_path / "step_10"
    (tmp_path / "step_10" / "meta.json").write_text("{}")
    assert checkpoint.newest_meta(tmp_path) == {"step": 9}


def test_which_stay(tmp_path: Path) -> None:
    for number in range(1, 7):
        write(tmp_path, number)
    (tmp_path / "step_7.tmp").mkdir()
    checkpoint.keep_newest(tmp_path, 2, {1, 4, 99})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_4", "step_5", "step_6"]
    checkpoint.keep_newest(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_6"]


def test_a_checkpoint_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renamed before its files go, so that a killed removal leaves no half of it under its name."""
    write(tmp_path, 1)

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoint.remove(tmp_path / "step_1")
    assert checkpoint.steps(tmp_path) == [] and (tmp_path / "step_1.old.tmp").exists()
    checkpoint.keep_newest(tmp_path, 1)
    assert not list(tmp_path.iterdir())
