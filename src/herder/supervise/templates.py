"""What a cluster's scheduler is given to run `herder launch` on many nodes: an sbatch script, a Kubernetes manifest.

The one design decision: every value from outside stands in the output exactly once, quoted by `shlex` for the shell or by
JSON for YAML (JSON strings are YAML strings), so no recipe's name or setting can become code. Under Slurm, a node that fails
its health check or computes wrongly writes its name down and is left out of the next attempt.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from herder.supervise.watch import BROKEN, USER_ERROR

PORT = 29400


@dataclass(frozen=True)
class Cluster:
    """What the scheduler needs to know. `spares` are nodes allocated beyond `nodes`, to take a broken one's place (Slurm);
    `image` and `claim` (a volume for runs, mounted at /runs) are Kubernetes'."""

    name: str = "herder"
    nodes: int = 1
    nproc: int = 8
    spares: int = 0
    hours: int = 48
    partition: str = ""
    image: str = "herder:latest"
    claim: str = "runs"

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", self.name):
            raise ValueError(
                f"--name {self.name!r} must be small letters, digits and '-', at most 52, beginning with a letter: it becomes a "
                "job's and a host's name"
            )
        for name, least in (("nodes", 1), ("nproc", 1), ("spares", 0), ("hours", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.partition and not re.fullmatch(r"[\w.,-]+", self.partition):
            raise ValueError(f"--partition {self.partition!r} is no name of a Slurm partition")


def write(scheduler: str, cluster: Cluster, options: list[str], command: list[str]) -> str:
    """The job for "slurm" or "kubernetes". `options` are those of `herder launch` that are not the cluster's."""
    if scheduler not in ("slurm", "kubernetes"):
        raise ValueError(f"--dry-run {scheduler!r} is not known; use slurm or kubernetes")
    return (slurm if scheduler == "slurm" else kubernetes)(cluster, options, command)


def slurm(cluster: Cluster, options: list[str], command: list[str]) -> str:
    """An sbatch script; its log folder is where all nodes see it."""
    total, nodes = cluster.nodes + cluster.spares, cluster.nodes
    log = f"runs/.launch/{cluster.name}"
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={cluster.name}",
        f"#SBATCH --nodes={total}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={cluster.nproc}",
        "#SBATCH --exclusive",
        f"#SBATCH --time={cluster.hours}:00:00",
        f"#SBATCH --output={cluster.name}-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
    ]
    head += [f"#SBATCH --partition={cluster.partition}"] if cluster.partition else []
    words = ["herder", "launch", "--nproc", str(cluster.nproc), "--nnodes", str(nodes), "--name", cluster.name]
    words += ["--log", log, *options]
    return (
        "\n".join(head)
        + f"""
# {nodes} nodes run, {cluster.spares} more are held to take the place of broken ones.
set -uo pipefail
log={shlex.quote(log)}
mkdir -p "$log"
: > "$log/broken-hosts"
while true; do
  broken=$(wc -l < "$log/broken-hosts")
  mapfile -t good < <(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxFf "$log/broken-hosts")
  if [ "${{#good[@]}}" -lt {nodes} ]; then
    echo "only ${{#good[@]}} sound nodes are left of the {nodes} needed" >&2
    exit {BROKEN}
  fi
  hosts=$(IFS=,; echo "${{good[*]:0:{nodes}}}")
  code=0
  srun --nodes={nodes} --ntasks={nodes} --nodelist="$hosts" --kill-on-bad-exit=1 \\
    {_shell(words)} --rdzv "${{good[0]}}:{PORT}" \\
    {_shell(command)} || code=$?
  # Only the name of a broken node is a reason to try again here; herder launch has tried everything else.
  [ "$(wc -l < "$log/broken-hosts")" -gt "$broken" ] || exit "$code"
done
"""
    )


def _shell(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def kubernetes(cluster: Cluster, options: list[str], command: list[str]) -> str:
    """A headless Service and an Indexed Job, one pod a node: the pod with index 0 is where the others meet."""
    first = f"{cluster.name}-0.{cluster.name}"
    words = ["herder", "launch", "--nproc", str(cluster.nproc), "--nnodes", str(cluster.nodes), "--name", cluster.name]
    words += ["--rdzv", f"{first}:{PORT}"] if cluster.nodes > 1 else []
    words += ["--log", f"/runs/.launch/{cluster.name}", *options, *command]
    labels = {"app.kubernetes.io/name": "herder", "herder/run": cluster.name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": cluster.name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"herder/run": cluster.name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    container = {
        "name": "herder",
        "image": cluster.image,
        "command": [word.replace("$(", "$$(") for word in words],  # Kubernetes has variables of its own
        "workingDir": "/runs",
        "resources": {"limits": {"nvidia.com/gpu": cluster.nproc}},
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}, {"name": "memory", "mountPath": "/dev/shm"}],
    }
    apart = {"labelSelector": {"matchLabels": {"herder/run": cluster.name}}, "topologyKey": "kubernetes.io/hostname"}
    pod = {
        "subdomain": cluster.name,
        "restartPolicy": "Never",
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": cluster.claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    mended = {"containerName": "herder", "operator": "In", "values": [USER_ERROR]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": cluster.name, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": cluster.nodes,
            "parallelism": cluster.nodes,
            "backoffLimit": 100,
            "activeDeadlineSeconds": cluster.hours * 3600,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": mended},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return "---\n".join("\n".join(_yaml(document, 0)) + "\n" for document in (service, job))


def _yaml(value: Any, depth: int) -> Iterator[str]:
    """Block YAML; every scalar and key is JSON, which YAML reads as it is."""
    pad = "  " * depth
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list):
                yield f"{pad}{_key(key)}:"
                yield from _yaml(inner, depth + 1)
            else:
                yield f"{pad}{_key(key)}: {json.dumps(inner)}"
    else:
        for inner in value:
            if isinstance(inner, dict):
                first, *rest = _yaml(inner, depth + 1)
                yield f"{pad}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{pad}- {json.dumps(inner)}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z]+", key) else json.dumps(key)
