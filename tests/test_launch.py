"""The launch scripts, run with stand-ins for the services; every ``r2m`` line goes to the command's own parser."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ["steps.sh", "gpu_box.sh", "slurm_gpu.sbatch", "tpu_pod.sh"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is absent")

BETWEEN = "\037"
STAND_INS = {
    "r2m": """#!/usr/bin/env bash
printf '%s\\037' "$@" >> "$CALLS"
echo >> "$CALLS"
[ -z "${SAVES:-}" ] || { trap 'sleep 0.3; exit 130' TERM; while :; do sleep 0.05; done; }
exit "$CODE"
""",
    "srun": '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/usr/bin/env bash\necho "scontrol $*"\n',
    "gcloud": '#!/usr/bin/env bash\nfor last; do :; done\nexec bash -c "${last#--command=}"\n',
}


@pytest.fixture
def run(tmp_path):
    """Runs a script; the result and the ``r2m`` lines it came to."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in STAND_INS.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    shutil.copytree(LAUNCH, tmp_path / "launch")

    def call(*command, code=0):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        env = os.environ | {
            "PATH": f"{bin_}:{os.environ['PATH']}", "CALLS": str(calls), "CODE": str(code), "ROOT": str(tmp_path),
            "TPU": "slice", "ZONE": "zone", "ATTEMPTS": "2", "PAUSE": "0", "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(tmp_path),
        }  # fmt: skip
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
        return result, [line.split(BETWEEN)[:-1] for line in calls.read_text().split("\n")[:-1]]

    return call


def pod():
    """The JobSet, its job and its pod."""
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return jobset, job, job["template"]["spec"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_launcher_comes_to_the_same_lines(run, script, tmp_path):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    result, calls = run("bash", f"launch/{script}")
    assert result.returncode == 0, result.stderr
    assert [call[0] for call in calls] == ["train", "train", "train", "merge", "eval"]
    assert calls == run("bash", "launch/steps.sh")[1]


def test_the_command_takes_every_line(run):
    from r2m_jax.cli.app import app

    _, calls = run("bash", "launch/steps.sh")
    for call in calls:
        shown = CliRunner().invoke(app, [*call, "--dry-run"])
        assert shown.exit_code == 0, (call, shown.output, shown.exception)
        assert "out: " in shown.stdout
    wrong = CliRunner().invoke(app, [*calls[3], "--aplha", "0.5", "--dry-run"])
    assert wrong.exit_code == 2


def test_what_is_done_is_skipped_and_what_failed_ends_the_steps(run, tmp_path):
    (tmp_path / "runs" / "FS").mkdir(parents=True)
    _, calls = run("bash", "launch/steps.sh")
    assert [call[2] for call in calls if call[0] == "train"] == ["name=FR", "name=EFS"]
    result, calls = run("bash", "launch/steps.sh", code=75)
    assert (result.returncode, len(calls)) == (75, 1)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (75, True), (130, True)])
def test_only_what_may_succeed_is_started_again(run, code, again):
    result, _ = run("bash", "launch/slurm_gpu.sbatch", code=code)
    assert result.returncode == code
    assert ("scontrol requeue 7" in result.stdout) == again
    result, calls = run("bash", "launch/tpu_pod.sh", code=code)
    assert result.returncode == code
    assert len(calls) == (5 if code == 0 else 2 if again else 1)


def test_a_signal_to_the_steps_reaches_the_command_which_is_waited_for(run):
    script = 'bash launch/steps.sh & sleep 1; kill -TERM $!; wait $!; echo "code $?"'
    result, calls = run("env", "SAVES=1", "bash", "-c", script)
    assert result.stdout == "code 130\n", result.stderr
    assert len(calls) == 1


def test_sbatch_directives():
    lines = (LAUNCH / "slurm_gpu.sbatch").read_text().splitlines()
    given = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    # One task per GPU: JAX gives each task of a node the device of its number.
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert re.fullmatch(r"TERM@\d+", given["signal"])
    assert given["requeue"] == ""
    assert given.keys() <= {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue",
        "open-mode", "output",
    }  # fmt: skip
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])  # sbatch reads no directive after a command


def test_the_jobset_has_the_fields_of_its_api(run):
    """Names from the JobSet API (v1alpha2) and Kubernetes' Job API (batch/v1)."""
    jobset, job, spec = pod()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"].keys() <= {
        "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
        "managedBy", "ttlSecondsAfterFinished",
    }  # fmt: skip
    policy = jobset["spec"]["failurePolicy"]
    assert policy.keys() <= {"maxRestarts", "rules", "restartStrategy"}
    for rule in policy["rules"]:
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy",
        }  # fmt: skip
    assert job.keys() <= {
        "completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy", "template",
        "activeDeadlineSeconds", "ttlSecondsAfterFinished",
    }  # fmt: skip
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    hosts, chips = job["completions"], spec["containers"][0]["resources"]["limits"]["google.com/tpu"]
    sides = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert hosts * chips == int(sides[0]) * int(sides[1])
    assert spec["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": spec["containers"][0]["name"], "operator": "In", "values": [2]}
    mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    *shell, line = spec["containers"][0]["command"]
    result, calls = run(*shell, line.replace("/steps/", "launch/"))
    assert result.returncode == 0, result.stderr
    assert calls == run("bash", "launch/steps.sh")[1]
