"""Turn records into tables, plots, verdicts and the report page. Nothing here imports torch or runs anything."""
