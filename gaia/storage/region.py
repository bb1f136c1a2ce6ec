"""Regions of data and machines, and a warning about the cost of reading across them.

The golden rule of a streaming run: bucket and accelerator in one region. Elsewhere each epoch pays
for the transfer, and waits for it.
"""

import os
import urllib.error
import urllib.request

ENVIRONMENT = "GAIA_ZONE"
_METADATA = "http://{host}/computeMetadata/v1/instance/zone"
_TIMEOUT_S = 1.0
# Multi-regions and dual-regions whose member regions begin so (cloud.google.com/storage/docs/
# locations, 2026-11).
_MULTI = {
    "US": "us-", "EU": "europe-", "ASIA": "asia-", "NAM4": "us-", "EUR4": "europe-",
    "ASIA1": "asia-", "EUR5": "europe-", "EUR7": "europe-", "EUR8": "europe-",
}  # fmt: skip


def this_zone() -> str | None:
    """The zone of this machine: $GAIA_ZONE, else what a Google VM's metadata server says.

    With STORAGE_EMULATOR_HOST set nothing real is being read, and no server is asked.
    """
    if zone := os.environ.get(ENVIRONMENT):
        return zone
    if os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("NO_GCE_CHECK"):
        return None
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        _METADATA.format(host=host), headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.read().decode().rsplit("/", 1)[-1] or None
    except (urllib.error.URLError, OSError, ValueError):
        return None  # no Google VM


def differs(location: str, zone: str, bucket: str) -> str | None:
    """A warning where a bucket's location and a zone are not in one region; None where they are.

    Args:
        location: of the bucket, such as US-CENTRAL1 or US.
        zone: such as us-central2-b.
        bucket: its address, for the sentence.
    """
    here = zone.rsplit("-", 1)[0]
    if location.lower() == here:
        return None
    if here.startswith(_MULTI.get(location.upper(), "\0")):
        return (
            f"{bucket} is in the multi-region {location}: reading it from {here} is charged per GB "
            f"and slower than a bucket in {here}"
        )
    return (
        f"{bucket} is in {location.lower()}, this machine in {here}: every epoch pays for the "
        f"transfer between regions and waits for it; copy the data to a bucket in {here}"
    )
