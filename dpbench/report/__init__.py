"""Turn records into tables, plots, verdicts and the report page. Nothing here imports torch or runs anything."""

from dpbench.report.frames import frame as frame
