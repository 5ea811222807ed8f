"""From records to tables, plots, verdicts and the page. Nothing here imports torch or runs anything."""
