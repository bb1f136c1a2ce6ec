"""`gml doctor` of Google: credentials, project, APIs, firewall, and what Compute Engine offers."""

from __future__ import annotations

import time

from gml.errors import GmlError
from gml.model import parse_sku
from gml.places import region_of
from gml.providers.base import Check, check
from gml.providers.google.buckets import bucket_location
from gml.providers.google.offers import VERIFIED
from gml.providers.google.session import Session
from gml.providers.google.signin import LOGIN


def google_checks(session: Session) -> list[Check]:
    """Credentials, project, the two APIs, the network, the firewall, quota hints."""
    config, checks = session.config, []
    try:
        project = config.project
        checks.append(check("google project", True, project))
    except GmlError as error:
        return [check("google project", False, error.problem, error.remedy)]
    try:
        session.api.sign_in.token()
        checks.append(check("google credentials", True, "accepted"))
    except GmlError as error:
        return [*checks, check("google credentials", False, error.problem, error.remedy or LOGIN)]
    root = f"compute/v1/projects/{project}"
    for name, service, path in (
        ("TPU API", "tpu", f"v2/projects/{project}/locations/-/nodes"),
        ("Compute API", "compute", root),
    ):
        try:
            answer = session.api.get(service, path)
            fix = "gcloud projects list  (the id, not the name)"
            checks.append(check(name, answer is not None, "answers" if answer else "unknown", fix))
        except GmlError as error:
            checks.append(check(name, False, error.problem, error.remedy))
    try:
        checks.append(_firewall(session, root))
    except GmlError as error:
        checks.append(check("ssh firewall", False, error.problem, error.remedy))
    if config.google.bucket:
        try:
            place = bucket_location(session.api, config.google.bucket)
            checks.append(check("bucket", True, f"gs://{config.google.bucket} in {place}"))
        except GmlError as error:
            fix = f"gcloud storage buckets create gs://{config.google.bucket} --project {project}"
            checks.append(check("bucket", False, error.problem, fix))
    return checks


def _firewall(session: Session, root: str) -> Check:
    network = session.config.google.network
    rules = [
        r
        for p in session.api.pages("compute", f"{root}/global/firewalls")
        for r in p.get("items", [])
    ]
    opens = [
        r["name"]
        for r in rules
        if str(r.get("network", "")).rsplit("/", 1)[-1] == network
        and r.get("direction", "INGRESS") == "INGRESS"
        and any(
            a.get("IPProtocol") in ("tcp", "all") and _covers_22(a.get("ports"))
            for a in r.get("allowed", [])
        )
    ]
    return check(
        "ssh firewall",
        bool(opens),
        ", ".join(opens) or f"no rule of network {network} lets tcp:22 in",
        f"gcloud compute firewall-rules create gml-ssh --network {network} --allow tcp:22 "
        f"--project {session.config.project}",
    )


def _covers_22(ports: list[str] | None) -> bool:
    if not ports:
        return True
    for text in ports:
        low, _, high = text.partition("-")
        if int(low) <= 22 <= int(high or low):
            return True
    return False


def verify_gce(session: Session, instance_type: str) -> list[Check]:
    """Machine type and image per zone; what passes is remembered, and `auto` then takes `gce`."""
    sku = parse_sku(instance_type)
    if not sku.gce_machine_type:
        return [check(f"gce {instance_type}", False, "Google does not sell it", "gml offers")]
    google = session.config.google
    tpu = sku.chip.kind == "tpu"
    image = (
        (google.image_project, google.image_family)
        if tpu
        else (google.gpu_image_project, google.gpu_image_family)
    )
    checks, verified = [], session.store.read_json(VERIFIED)
    try:
        path = f"compute/v1/projects/{image[0]}/global/images/family/{image[1]}"
        family = session.api.get("compute", path)
    except GmlError as error:
        return [check(f"gce image {image[1]}", False, error.problem, error.remedy)]
    fix = "set google.image_project and google.image_family in config.toml"
    checks.append(
        check(f"gce image {image[1]}", bool(family), "exists" if family else "absent", fix)
    )
    for zone in sku.zones if family else ():
        root = f"compute/v1/projects/{session.config.project}/zones/{zone}"
        machine = session.api.get("compute", f"{root}/machineTypes/{sku.gce_machine_type}")
        if machine:
            verified[f"{sku.name}@{zone}"] = time.strftime("%Y-%m-%d")
        else:
            verified.pop(f"{sku.name}@{zone}", None)
        detail = f"{sku.gce_machine_type} is offered" if machine else "not offered"
        checks.append(check(f"gce {sku.name} in {zone}", True, detail))
    session.store.write_json(VERIFIED, verified)
    quota = (
        f"Compute quota is not the TPU API's: see TPUS-PER-TPU-FAMILY-per-project-region in "
        f"{region_of(sku.zones[0])} and others (spot: PREEMPTIBLE-TPU-…-per-project-zone)"
    )
    checks.append(check("gce quota", True, quota))
    return checks
