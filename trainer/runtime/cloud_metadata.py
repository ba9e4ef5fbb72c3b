"""Asks Google Cloud's metadata server about this machine."""

import os
import urllib.request

from absl import logging

from tfrecords.storage import files, gcs


def metadata(key: str) -> str:
    """Returns a value of the metadata server; empty where none answers.

    Args:
      key: below `instance/`, such as "preempted".
    """
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError):
        return ""


def warn_of_distance(folder: str) -> None:
    """Warns where a folder's bucket and this machine are in different regions."""
    if not files.is_remote(folder):
        return
    zone = metadata("zone").rpartition("/")[2]
    location = gcs.location(folder).lower() if zone else ""
    if location and not _near(location, zone):
        logging.warning(
            "%s is in %s, and this machine is in %s: reading across regions is slow "
            "and costs money. Use a bucket in the machine's region",
            folder,
            location.upper(),
            zone,
        )


def _near(location: str, zone: str) -> bool:
    """Returns whether a zone is within a bucket's location, in lower case."""
    if "-" in location:  # a region
        return zone.startswith(f"{location}-")
    # Several regions of a continent, such as "us", "nam4", "eur4".
    continents = {"us": "us", "nam": "us", "eu": "europe", "eur": "europe"}
    continent = location.rstrip("0123456789")
    return zone.startswith(continents.get(continent, continent))
