"""clusters/: the files fit what reads them: Kubernetes, KubeRay, Ray's launcher, Anyscale, Docker, the shell."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cluster_files import CLUSTERS, OPTIONS, document, documents, nightly_script, pods, ray_cluster, renderer, texts
from kuberay_fields import SCHEMAS

KUBERNETES = "1.33"  # an old one that is still looked after: what it takes, newer ones take too
RAY_FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
KUBERNETES_FILES = ("kuberay/storage.yaml", "kuberay/mlflow.yaml", "kuberay/nightly.yaml")
LAUNCHER_FILES = ("launcher/aws.yaml", "launcher/gcp.yaml", "launcher/onprem.yaml")
PODS = [(name, where, pod) for name in (*RAY_FILES, *KUBERNETES_FILES) for where, pod in pods(documents(name))]
CONTAINERS = [(f"{name}:{where}", pod, container) for name, where, pod in PODS for container in pod["containers"]]
BIN = Path(sys.executable).parent


def gibibytes(size: str) -> float:
    number = float(size[:-2])
    return number if size.endswith("Gi") else number / 1024


@pytest.mark.parametrize("name", KUBERNETES_FILES)
def test_kubernetes_takes_every_object(name: str) -> None:
    assert documents(name)
    for each in documents(name):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_kuberay_takes_every_object_and_kubernetes_its_pods(name: str) -> None:
    (whole,) = documents(name)
    jsonschema.validate(whole, SCHEMAS[whole["kind"]])
    found = dict(pods(whole))
    assert len(found) == 4 + (whole["kind"] == "RayJob")
    for pod in found.values():
        named = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        kubernetes_validate.validate(named, KUBERNETES, strict=True)


def test_a_wrong_field_would_be_found() -> None:
    for name, path in (("kuberay/nightly.yaml", "spec"), ("kuberay/mlflow.yaml", "metadata")):
        each = copy.deepcopy(documents(name)[0])
        each[path]["shedule"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    for change in ({"autoscaling": True}, {"workerGroupSpecs": [{"groupName": "gpu"}]}, {"rayVersion": 2.6}):
        whole = copy.deepcopy(documents("kuberay/raycluster.yaml")[0])
        whole["spec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole, SCHEMAS["RayCluster"])


@pytest.mark.parametrize(("place", "pod", "container"), CONTAINERS, ids=[place for place, _, _ in CONTAINERS])
def test_containers_can_do_little(place: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 999
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.get("automountServiceAccountToken") is False or container["name"] == "ray-head"
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all("hostPort" not in port for port in container.get("ports", ()))
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@pytest.mark.parametrize(("place", "pod", "container"), CONTAINERS, ids=[place for place, _, _ in CONTAINERS])
def test_volumes_and_secrets_are_there(place: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    if "postgres:" in container["image"]:
        (claim,) = document("kuberay/mlflow.yaml", "StatefulSet")["spec"]["volumeClaimTemplates"]
        volumes["data"] = {"name": claim["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert all(volume.keys() <= {"name", "persistentVolumeClaim", "emptyDir"} for volume in volumes.values())
    claims = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claims <= {document("kuberay/storage.yaml", "PersistentVolumeClaim")["metadata"]["name"]}
    for variable in container.get("env", ()):
        if re.search("TOKEN|PASSWORD|SECRET|KEY", variable["name"]):
            assert variable["valueFrom"].keys() == {"secretKeyRef"}
    shm = volumes.get("shm")
    if shm is not None:  # Ray's objects and the workers' own memory must fit beside each other
        memory = gibibytes(container["resources"]["limits"]["memory"])
        assert gibibytes(shm["emptyDir"]["sizeLimit"]) <= memory / 2
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        grace = next(int(each["value"]) for each in container["env"] if "GRACEFUL" in each["name"])
        assert grace < pod["terminationGracePeriodSeconds"]


def test_every_node_sees_one_folder() -> None:
    claim = document("kuberay/storage.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    shared = OPTIONS["run"]["shared"]
    for name in RAY_FILES:
        for _, pod in pods(ray_cluster(name)):
            assert {"name": "shared", "mountPath": shared} in pod["containers"][0]["volumeMounts"]
    for name in LAUNCHER_FILES:
        assert f"--volume {shared}:{shared}" in documents(name)[0]["docker"]["run_options"]
        assert any(f"mountpoint -q {shared}" in line for line in documents(name)[0]["initialization_commands"])


@pytest.mark.parametrize("name", RAY_FILES)
def test_groups_of_a_ray_cluster(name: str) -> None:
    cluster, gpu = ray_cluster(name), OPTIONS["gpu"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    counts = {key: (each["minReplicas"], each["replicas"], each["maxReplicas"]) for key, each in groups.items()}
    assert counts == {
        "gpu": (gpu["machines"],) * 3,  # a run counts GPUs when it starts
        "data": (0, 0, OPTIONS["data"]["most"]),
        "evaluation": (0, 0, OPTIONS["evaluation"]["most"]),
    }
    assert {key: each["labels"]["ray-subcluster"] for key, each in groups.items()} == {
        "gpu": "train",
        "data": "data",
        "evaluation": "eval",
    }
    for key, group in groups.items():
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert resources["limits"].get("nvidia.com/gpu") == (None if key == "data" else str(gpu["gpus"]))


def test_what_a_job_leaves_is_deleted() -> None:
    rules = documents("kuberay/rayjob.yaml")[0]["spec"]["deletionStrategy"]["deletionRules"]
    assert {next(iter(rule["condition"].items())) for rule in rules} == {
        ("jobStatus", "SUCCEEDED"),
        ("jobStatus", "FAILED"),
        ("jobDeploymentStatus", "Failed"),
    }
    # KubeRay deletes no workers under an autoscaler, which would start them again.
    assert {rule["policy"] for rule in rules} == {"DeleteCluster"}


def test_services_are_inside_the_cluster_and_lead_somewhere() -> None:
    objects = documents("kuberay/mlflow.yaml")
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in objects if "template" in each["spec"]]
    services = [each for each in objects if each["kind"] == "Service"]
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    assert len(services) == len(policies) == len(labels) == 2
    for service in services:
        assert service["spec"]["type"] == "ClusterIP"
        assert service["spec"]["selector"] in labels
    assert [each["spec"]["podSelector"]["matchLabels"] in labels for each in policies] == [True, True]
    allowed = document("kuberay/mlflow.yaml", "NetworkPolicy", "-mlflow")["spec"]["ingress"][0]["from"][0][
        "podSelector"
    ]
    for name in RAY_FILES:
        cluster = ray_cluster(name)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert allowed["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_the_server_is_where_runs_look_for_it_and_answers_to_that_name() -> None:
    server = document("kuberay/mlflow.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    hosts = next(word for word in server["args"] if word.startswith("--allowed-hosts="))
    service = document("kuberay/mlflow.yaml", "Service", "-mlflow")
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert address in hosts.partition("=")[2].split(",")
    head = ray_cluster("kuberay/rayjob.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "MLFLOW_TRACKING_URI", "value": f"http://{address}"} in head["env"]
    backend = next(word for word in server["args"] if word.startswith("--backend-store-uri="))
    database = document("kuberay/mlflow.yaml", "Service", "-database")["metadata"]["name"]
    assert backend.endswith(f"=postgresql://mlflow@{database}:5432/mlflow")  # and no password


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_rays_launcher_takes_the_file(name: str) -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    schema = json.loads((Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())
    (config,) = documents(name)
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "min_workers": 1}, schema)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert any("--dashboard-host 127.0.0.1" in line for line in config["head_start_ray_commands"])
    for line in (line for key, lines in config.items() if key.endswith("_commands") for line in lines):
        subprocess.run(["bash", "-n", "-c", line], check=True)
    if name == "launcher/onprem.yaml":
        assert config["provider"]["worker_ips"] == OPTIONS["onprem"]["workers"]
        return
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["min_workers"] == types["gpu"]["max_workers"] == OPTIONS["gpu"]["machines"]
    assert config["max_workers"] == sum(each["max_workers"] for each in types.values())


def test_anyscale_takes_the_job() -> None:
    """Fields of JobConfig and ComputeConfig in the package `anyscale`, 0.26."""
    (job,) = documents("anyscale/job.yaml")
    taken = {"name", "entrypoint", "image_uri", "containerfile", "registry_login_secret", "compute_config"}
    taken |= {"working_dir", "excludes", "requirements", "env_vars", "py_modules", "cloud", "project", "ray_version"}
    taken |= {"max_retries", "timeout_s", "tags", "job_queue_config", "py_executable"}
    assert job.keys() <= taken
    assert all(isinstance(value, str) for value in job["env_vars"].values())
    assert job["compute_config"].keys() <= {"cloud", "head_node", "worker_nodes", "zones", "flags"}
    for group in job["compute_config"]["worker_nodes"]:
        assert group.keys() <= {"name", "instance_type", "resources", "labels", "min_nodes", "max_nodes", "market_type"}
        assert 0 <= group["min_nodes"] <= group["max_nodes"]


def test_the_runtime_environment_has_fields_that_ray_knows() -> None:
    (environment,) = documents("runtime_env.yaml")
    assert environment.keys() == {"env_vars", "config"}  # packages are in the image
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
    assert environment["config"].keys() == {"setup_timeout_seconds"}


@pytest.mark.parametrize("name", [name for name in texts() if "Dockerfile" in name or "Containerfile" in name])
def test_images_pass_hadolint(name: str) -> None:
    found = subprocess.run([BIN / "hadolint", "-"], input=texts()[name], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    users = re.findall(r"^USER (\S+)$", texts()[name], re.MULTILINE)
    user = renderer["derived"](OPTIONS, renderer["versions"]())["user"]
    assert users == ([] if name.startswith("anyscale") else [f"{user}:{user}"])  # Anyscale's own image has one


def test_scripts_pass_shellcheck() -> None:
    scripts = {
        "coast.sbatch": texts()["slurm/coast.sbatch"],
        "nightly": f"#!/usr/bin/env bash\n{nightly_script()}",
        "wrong": "#!/usr/bin/env bash\nrm $1\n",
    }
    for name, text in scripts.items():
        found = subprocess.run([BIN / "shellcheck", "-"], input=text, capture_output=True, text=True)
        assert (found.returncode == 0) == (name != "wrong"), found.stdout
    found = subprocess.run([BIN / "shellcheck", "-x", *sorted(CLUSTERS.glob("*.sh"))], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
