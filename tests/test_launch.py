"""The launch files: their syntax, the names in them, and Slurm's and Kubernetes' words for torchrun.

tests/training/test_distributed.py runs torchrun.sh.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("torchrun.sh", "slurm.sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name):
    done = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda p: p.name)
def test_files_that_a_launch_file_names_exist(path):
    named = re.findall(r"(?:recipes|launch)/[\w./]+\w", path.read_text())
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_torchrun_is_started_once_a_machine(tmp_path):
    """What torchrun gets, with a python that prints its words."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\necho "$PET_NPROC_PER_NODE $*"\n')
    fake.chmod(0o755)

    def words(*arguments, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "MASTER_"))}
        done = subprocess.run(
            [LAUNCH / "torchrun.sh", *arguments],
            env=kept | {"PYTHON": str(fake)} | environment, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip() or done.stderr.strip()

    run = "-m torch.distributed.run"
    train = "-m titanslab.cli train r.toml --output"
    assert words("r.toml", "out", "--set", "a=1") == f"gpu {run} --standalone {train} out --set a=1"
    several = f"--nnodes 2 --node-rank 1 --master-addr first --master-port 29500 {train} out"
    slurm = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "NPROC_PER_NODE": "8"}
    assert words("r.toml", "out", **slurm) == f"8 {run} {several}"
    kubernetes = {f"PET_{name}": value for name, value in slurm.items()}
    assert words("r.toml", "out", **kubernetes) == f"8 {run} {several}"
    (tmp_path / "recipe.toml").touch()
    assert words("r.toml", str(tmp_path)).endswith(f"{train} {tmp_path} --resume")
    assert "the run folder is missing" in words("r.toml")
    assert "the name of the first machine is missing" in words("r.toml", "out", NNODES="2", NODE_RANK="0")


def test_slurm_starts_one_task_a_machine():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.M))
    assert options["ntasks-per-node"] == "1"
    assert options["signal"].startswith("TERM@")
    assert (LAUNCH / "torchrun.sh").stat().st_mode & 0o100


def test_the_job_of_kubernetes_runs_the_script_on_each_pod():
    job = yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for pods in replicas.values():
        (container,) = pods["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert container["command"][0] == "launch/torchrun.sh"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
        volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
