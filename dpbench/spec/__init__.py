"""From a table's YAML to named runs. Nothing here imports torch, so that a dry run stays fast."""
