"""What KubeRay 1.6 takes in a RayCluster and a RayJob, as a JSON schema: no package ships one.

Names, types and choices are those of https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html. Fields that
no file uses are left out: a new one is looked up before it is written. Pods are checked by Kubernetes' own schemas.
"""

from __future__ import annotations

from typing import Any


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


COUNT = {"type": "integer", "minimum": 0}
SECONDS = {"type": "integer", "minimum": 1}
TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers in it would be refused
POD = {"type": "object", "required": ["spec"]}
METADATA = fields(
    ("name", "namespace"), name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, namespace=TEXT
)

HEAD = fields(
    ("rayStartParams", "template"),
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=TEXTS,
    labels=TEXTS,
    template=POD,
)
GROUP = fields(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    labels=TEXTS,
    template=POD,
)
CLUSTER_SPEC = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        securityContext={"type": "object"},
        resources={"type": "object"},
    ),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP},
)
RULE = fields(
    ("policy", "condition"),
    policy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]},
    condition={
        **fields(
            jobStatus={"enum": ["SUCCEEDED", "FAILED"]}, jobDeploymentStatus={"enum": ["Failed"]}, ttlSeconds=COUNT
        ),
        "oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}],
    },
)
JOB_SPEC = fields(  # with rules, neither shutdownAfterJobFinishes nor ttlSecondsAfterFinished may be given
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds=SECONDS,
    deletionStrategy=fields(("deletionRules",), deletionRules={"type": "array", "minItems": 1, "items": RULE}),
    submitterPodTemplate=POD,
    rayClusterSpec=CLUSTER_SPEC,
)


def _kind(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": name},
        metadata=METADATA,
        spec=spec,
    )


SCHEMAS = {"RayCluster": _kind("RayCluster", CLUSTER_SPEC), "RayJob": _kind("RayJob", JOB_SPEC)}
