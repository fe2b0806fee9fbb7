"""Jobs for Slurm and Kubernetes: they parse, say what was asked, and no value becomes code."""

import os
import subprocess

import pytest
import yaml

from herder.supervise.templates import Cluster, write

NASTY = [
    "run",
    "my recipe.py",
    "--set",
    "x=$(touch stolen); `touch stolen`; \"'; touch stolen #",
    "--set",
    "y=a: [b]\n- c",
]
OPTIONS = ["--start-timeout=600", "--step-timeout=300"]
CLUSTER = Cluster("big-run", nodes=3, nproc=8, spares=1)

SRUN = """#!/bin/bash
printf '%s\\0' "$@" > srun-"$(ls | grep -c ^srun-)"
[ -n "${BREAK:-}" ] && [ ! -e broke ] && { touch broke; echo node2 >> runs/.launch/big-run/broken-hosts; exit 137; }
exit ${CODE:-0}
"""
SCONTROL = "#!/bin/bash\nprintf 'node1\\nnode2\\nnode3\\nnode4\\n'\n"


def run_slurm(tmp_path, **env):
    """Runs the script with an srun that writes its arguments down."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "job.sh").write_text(write("slurm", CLUSTER, OPTIONS, NASTY))
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-4]", **env}
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    calls = [p.read_text().split("\0")[:-1] for p in sorted(tmp_path.glob("srun-*"))]
    return done, calls


def test_the_sbatch_script_hands_every_word_over_as_it_is(tmp_path):
    done, [words] = run_slurm(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert words[-len(NASTY) :] == NASTY
    assert "node1:29400" in words
    assert "--nodelist=node1,node2,node3" in words
    assert not (tmp_path / "stolen").exists()


def test_the_sbatch_script_leaves_a_broken_node_out_of_the_next_attempt(tmp_path):
    done, [first, second] = run_slurm(tmp_path, BREAK="1")
    assert done.returncode == 0
    assert "--nodelist=node1,node2,node3" in first
    assert "--nodelist=node1,node3,node4" in second


def test_the_sbatch_script_ends_with_the_launchers_code_where_no_node_is_broken(tmp_path):
    done, calls = run_slurm(tmp_path, CODE="2")
    assert (done.returncode, len(calls)) == (2, 1)


def test_the_sbatch_head_asks_for_what_was_given():
    text = write("slurm", Cluster("r", nodes=2, nproc=4, hours=5, partition="gpu"), [], ["run", "x"])
    for line in ("--nodes=2", "--gpus-per-node=4", "--time=5:00:00", "--partition=gpu", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in text


def test_the_kubernetes_manifest_is_a_service_and_an_indexed_job_that_find_each_other():
    service, job = yaml.safe_load_all(write("kubernetes", CLUSTER, OPTIONS, NASTY))
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    template = job["spec"]["template"]
    pod = template["spec"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert pod["subdomain"] == service["metadata"]["name"]  # what gives the first pod its name in DNS
    assert pod["restartPolicy"] == "Never"  # a pod failure policy allows no other
    [container] = pod["containers"]
    words = container["command"]
    assert words[words.index("--rdzv") + 1] == "big-run-0.big-run:29400"
    assert words[-len(NASTY) :] == [word.replace("$(", "$$(") for word in NASTY]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    volumes = {v["name"] for v in pod["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} <= volumes
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]
    assert all(rule["action"] in ("FailJob", "Ignore", "Count", "FailIndex") for rule in rules)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": "Has Spaces"}, "--name"), ({"nodes": 0}, "nodes is 0"), ({"partition": "a;b"}, "--partition")],
)
def test_values_that_make_no_job_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        Cluster(**{"name": "ok", **change})


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(ValueError, match="use slurm or kubernetes"):
        write("lsf", CLUSTER, [], [])
