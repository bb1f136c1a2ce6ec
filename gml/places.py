"""Zones, regions and bucket locations of Google, by their names alone."""

from __future__ import annotations

import re


def region_of(zone: str) -> str:
    """Region of a zone: `us-east5` of `us-east5-b`, also of an AI zone such as `us-central1-ai1a`.

    Names of other kinds stay as they are.
    """
    return re.sub(r"(?<=\d)-(?:ai\d+)?[a-z]$", "", zone)


def same_place(bucket_region: str, region: str) -> bool:
    """Tells whether a bucket location (`US-EAST5`, `US`, `EU`) serves the region without egress."""
    place = bucket_region.lower()
    continents = {"us": "us-", "eu": "europe-", "asia": "asia-"}
    return place == region or (place in continents and region.startswith(continents[place]))
