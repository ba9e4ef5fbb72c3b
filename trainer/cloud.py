"""What a machine of Google Cloud says of itself, where this is one."""

import os
import urllib.request


def metadata(key: str) -> str:
    """Asks the metadata server about this machine; empty where there is none.

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
