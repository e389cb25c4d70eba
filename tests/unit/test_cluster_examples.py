"""The files of examples/cluster are what their tools read, and start what exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from paragator.config import Config
from paragator.settings import load

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
SCRIPTS, MANIFESTS = sorted(CLUSTER.glob("*.sh")), sorted(CLUSTER.glob("*.yaml"))


def pods(value: Any) -> list[dict[str, Any]]:
    """Every pod that a manifest describes: what stands under `template`."""
    if isinstance(value, list):
        return [pod for one in value for pod in pods(one)]
    if not isinstance(value, dict):
        return []
    own = [value["template"]["spec"]] if "template" in value else []
    return own + [pod for one in value.values() for pod in pods(one)]


def test_there_are_examples_for_both() -> None:
    assert len(SCRIPTS) == 2 and len(MANIFESTS) == 2


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_batch_script_is_bash_and_says_what_it_needs(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    text = path.read_text(encoding="utf-8")
    wanted = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert wanted["ntasks-per-node"] == "1" and {"nodes", "gpus-per-node", "time"} <= wanted.keys()
    assert text.index("set -euo pipefail") > text.rindex("#SBATCH")  # Slurm reads no directive after a command


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_overrides_are_keys_of_the_config(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"paragator\s+(- )?train", text)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = re.findall(r"--((?:train|engine|model)\.[a-z_]+) (\S+)", "\n".join(lines))
    for key, value in found:
        load(Config, None, [f"--{key}", ("http://a/v1" if key == "engine.url" else "1") if "$" in value else value])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_made_of_whole_objects(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert all({"apiVersion", "kind", "metadata", "spec"} <= set(one) for one in documents)
    found = pods(documents)
    assert found
    for pod in found:
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] and {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_job_and_its_arguments_agree() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))
    (pod,) = pods(job)
    arguments = dict(word[2:].split("=") for word in pod["containers"][0]["args"] if word.startswith("--"))
    assert int(arguments["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(arguments["nproc-per-node"]) == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert arguments["master-addr"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert str(service["spec"]["ports"][0]["port"]) == arguments["master-port"]
    assert pod["subdomain"] == service["metadata"]["name"]


def test_the_ray_job_asks_for_the_cards_that_it_has() -> None:
    (job,) = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text(encoding="utf-8"))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cards = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--train.processes {cards * group['replicas']}" in job["spec"]["entrypoint"]
