"""Announces the cost of bringing the data, and checks that a bucket is near the machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from gml.errors import UsageError
from gml.places import same_place

# Bytes/s assumed for announcing how long an upload will take (a home uplink of 100 Mbit/s).
UPLINK = 12.5e6


def announce_data(data: str, price: float | None, region: str, bucket_region: str) -> list[str]:
    """Lines that announce the cost of the data in minutes and money.

    Raises:
        UsageError: the folder is missing, or the bucket lies in another region than the machine.
    """
    per_hour = f"${price:.2f}/h" if price is not None else "an unknown price"
    if not data and price == 0:
        return []
    if not data:
        return [
            "without --data the job prepares its data on the paid machine: every 10 minutes of "
            + (f"it cost ${price / 6:.2f}" if price is not None else f"it are billed at {per_hour}")
        ]
    if data.startswith("gs://"):
        if bucket_region and region and not same_place(bucket_region, region):
            raise UsageError(
                f"--data {data} lies in {bucket_region}, the machine in {region}",
                "copy it into that region, or take a --zone in the bucket's region "
                "(reading across regions costs about $0.02/GB and starves the machine)",
            )
        return [f"data streams from {data} ({bucket_region or 'region unknown'})"]
    folder = Path(data)
    if not folder.is_dir():
        raise UsageError(f"--data {data!r} is neither a folder nor gs://…", "check the path")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    minutes = size / UPLINK / 60
    cost = f", ${minutes / 60 * price:.2f} of machine time" if price is not None else ""
    return [f"data: {size / 1e9:.2f} GB to upload, about {max(1, round(minutes))} min{cost}"]


def data_place(data: str) -> str:
    """The value of GAIA_DATA as a shell word on the machine; '' without data.

    Raises:
        UsageError: a folder whose name can't be one there.
    """
    if not data or data.startswith("gs://"):
        return shlex.quote(data) if data else ""
    name = Path(data).expanduser().name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise UsageError(
            f"connect.data {data!r}: its last part can't be a folder there", "use a plain name"
        )
    return f'"$HOME/data/{name}"'
