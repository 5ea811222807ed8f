"""NAME: say here what the rows are, and where they come from."""

# Put the files into FOLDER/NAME/ and set DPBENCH_DATA=FOLDER. Parquet files are read; of a CSV file, make one first:
#     python -c "from pyarrow import csv, parquet; parquet.write_table(csv.read_csv('train.csv'), 'train.parquet')"
PLUGIN = {
    "kind": "dataset",
    "name": "NAME",
    "version": 1,
    "summary": "what the rows are, in one line",
    "task": "classification",
    "classes": ["negative", "positive"],
    "folder": "NAME",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    # What the task needs -> the column that has it. A pair of texts has `text_pair` too.
    "columns": {"text": "text", "label": "label"},
    "rows": {"train": 1000, "validation": 200},
    "hub": None,
    "embedded": None,
    "licence": "say which",
    "citation": "say whose",
}
