"""Plans of work for the orchestrator's tests."""

import yaml


def write(folder, workloads, **more):
    """A plan file."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"workloads": workloads, **more}, sort_keys=False))
    return path


def sh(script, **more):
    """A workload that is a line of shell."""
    return {"command": ["sh", "-c", script], **more}
