"""The recipes of `examples/` start commands that exist, with values that fit together, and continue after signals."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from aia_jax.utils.config import read_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BATCH = sorted(EXAMPLES.glob("slurm/*.sbatch"))
MANIFESTS = sorted(EXAMPLES.glob("*/*.yaml"))
HEAD = "10.0.0.1"
# Appends its command line to $CALLS; srun and gcloud then exit with the code in $CODE.
STUB = """#!/bin/bash
echo "${0##*/} ${*@Q}" >> "$CALLS"
case ${0##*/} in hostname) echo "%s 10.1.1.1 " ;; srun|gcloud) exit "$CODE" ;; esac
"""


@pytest.fixture
def run_script(tmp_path):
    """Runs a script with stubs for the programs of a cluster. Returns its exit code and the recorded command lines."""
    for name in ("srun", "scontrol", "hostname", "python", "gcloud"):
        (tmp_path / name).write_text(STUB % HEAD)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()

    def run(path, *arguments, code=0):
        script, changed = re.subn("^shared=.*", f"shared={tmp_path}", path.read_text(), flags=re.MULTILINE)
        assert changed == (path.suffix == ".sbatch")
        calls = tmp_path / "calls"
        calls.write_text("")
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "CODE": str(code)}
        variables |= {name: value for name, value in directives(path).items() if name.startswith("SLURM_")}
        command = ["bash", "-c", script, path.name, *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert not done.stderr or done.returncode == 2, done.stderr
        return done.returncode, [shlex.split(line) for line in calls.read_text().splitlines()]

    return run


def directives(path):
    """Returns the #SBATCH options of a script, and the variables that SLURM sets for them."""
    found = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", path.read_text(), re.MULTILINE))
    nodes, cpus = found.get("nodes"), found.get("cpus-per-task")
    return found | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": nodes, "SLURM_CPUS_PER_TASK": cpus} if nodes else {}


def aia_command(call):
    """Returns the part of a command line that runs aia."""
    return call[call.index("aia") :]


def value(command, flag):
    """Returns the value of `--flag VALUE` or `--flag=VALUE`, or None."""
    for token, after in zip(command, [*command[1:], None], strict=True):
        if token.partition("=")[0] == flag:
            return token.partition("=")[2] or after
    return None


def manifest(path):
    [document] = yaml.safe_load_all(path.read_text())
    return document


def commands_of(path, run_script):
    """Returns the aia commands of a recipe."""
    if path.suffix == ".yaml":
        spec = manifest(path)["spec"]
        if "entrypoint" in spec:
            return [shlex.split(spec["entrypoint"])]
        containers = [pod_of(job)["containers"] for job in spec["replicatedJobs"]]
        tokens = [["aia", *container["args"]] for [container] in containers]
        return [[token.replace("$(JOB_COMPLETION_INDEX)", "1") for token in command] for command in tokens]
    if path.suffix == ".sh":
        _, [[*_, given]] = run_script(path, "train")
        docker = shlex.split(given.partition("--command=")[2].partition("; ")[2])
        [image] = [index for index, token in enumerate(docker) if token.endswith("aia:tpu")]
        return [["aia", *docker[image + 1 :]]]
    _, calls = run_script(path)
    return [aia_command(call) for call in calls if call[0] == "srun"]


def pod_of(job):
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("path", [*BATCH, *MANIFESTS, EXAMPLES / "tpu" / "pod_slice.sh"], ids=lambda path: path.name)
def test_the_commands_of_a_recipe_parse(path, run_script, parse, capsys):
    commands = commands_of(path, run_script)
    assert len(commands) == 1
    for command in commands:
        parsed = parse(command)
        assert parsed, f"{shlex.join(command)}: {capsys.readouterr().err}"
        if config := getattr(parsed, "config", None):
            read_config(config, parsed.overrides)


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.name)
def test_only_a_job_that_a_signal_stopped_is_requeued(path, run_script):
    options = directives(path)
    trains = "aia train" in path.read_text()
    for code in (0, 2, 3, 143):
        returned, calls = run_script(path, code=code)
        requeued = [call[1:] for call in calls if call[0] == "scontrol"]
        assert (returned, requeued) == (code, [["requeue", "7"]] if trains and code == 143 else [])
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options.get("signal", "").startswith("TERM@") == trains


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.name)
def test_a_slurm_job_has_one_process_for_each_host(path, run_script):
    options, (_, calls) = directives(path), run_script(path)
    [command] = [call for call in calls if call[0] == "srun"]
    assert options["ntasks-per-node"] == "1"
    if value(command, "--ray"):
        assert value(command, "--ray") == value(command, "--address") == f"{HEAD}:6379"
        assert value(command, "--min-nodes") == options["nodes"]
        assert int(value(command, "--ray_actors")) == int(options["nodes"]) * int(options["gpus-per-node"])
    else:
        assert (value(command, "--distributed") == "auto") == (int(options["nodes"]) > 1)


@pytest.mark.parametrize("path", [p for p in MANIFESTS if p.name == "train.yaml"], ids=lambda path: path.parent.name)
def test_the_pods_of_a_jobset_find_each_other_and_restart_together(path, run_script):
    document, [command] = manifest(path), commands_of(path, run_script)
    [job] = document["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], document["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimit"] == 0 < document["spec"]["failurePolicy"]["maxRestarts"]
    assert document["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"  # the old pods still save
    assert pod_of(job)["restartPolicy"] == "Never"  # needed by podFailurePolicy
    for rule in document["spec"]["failurePolicy"]["rules"]:
        assert re.fullmatch("[A-Za-z][A-Za-z0-9_]*", rule["name"])  # JobSet allows no hyphens
    volumes = {volume["name"] for volume in pod_of(job)["volumes"]}
    assert {mount["name"] for mount in pod_of(job)["containers"][0]["volumeMounts"]} == volumes
    if value(command, "--distributed") != "auto":
        assert value(command, "--distributed") == f"{name}-{job['name']}-0-0.{name}:1234"
        assert int(value(command, "--num_processes")) == spec["completions"]
    else:
        across, along = pod_of(job)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        chips = pod_of(job)["containers"][0]["resources"]["limits"]["google.com/tpu"]
        assert int(across) * int(along) == chips * spec["completions"]


def test_the_rayjob_has_a_gpu_for_each_actor(run_script):
    path = EXAMPLES / "kubernetes" / "annotate.yaml"
    spec, [command] = manifest(path)["spec"], commands_of(path, run_script)
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * worker["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(value(command, "--ray_actors"))
    [head] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head["image"] == worker["image"]


def test_the_script_for_a_tpu_slice_reaches_all_its_hosts(run_script):
    path = EXAMPLES / "tpu" / "pod_slice.sh"
    verbs = {"create": ["create", "ssh"], "train": ["ssh"], "log": ["ssh"], "stop": ["ssh"], "delete": ["delete"]}
    for action, expected in verbs.items():
        code, calls = run_script(path, action)
        assert code == 0
        assert [call[:5] for call in calls] == [["gcloud", "compute", "tpus", "tpu-vm", verb] for verb in expected]
        workers = [value(call, "--worker") for call in calls if call[4] == "ssh"]
        assert set(workers) <= {"0" if action == "log" else "all"}
    assert run_script(path) == (2, [])
    assert run_script(path, "create", code=1)[0] == 1  # an error of gcloud ends the script


def test_the_containerfile_copies_what_the_wheel_needs():
    text = (ROOT / "Containerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {
        source.strip("/") for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for source in line.split()
    }
    links = {path.readlink().name for path in (ROOT / "aia_jax").iterdir() if path.is_symlink()}
    needed = {"pyproject.toml", project["readme"], "aia_jax", *links}
    needed |= {Path(file).parts[0] for file in project["license-files"]}
    assert copied == needed
    [extras] = re.findall(r'^ARG EXTRAS="(.+)"$', text, re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
