"""TREC: what kind of answer a question asks for."""

PLUGIN = {
    "kind": "dataset",
    "name": "trec",
    "version": 1,
    "summary": "TREC questions, by the kind of answer they ask for (six coarse classes)",
    "task": "classification",
    "classes": ["abbreviation", "entity", "description", "human", "location", "number"],
    "folder": "trec",
    "files": {"train": "train.parquet", "validation": "test.parquet"},
    "columns": {"text": "text", "label": "label"},
    "rows": {"train": 5_452, "validation": 500},
    "hub": None,  # no revision has been pinned: see data_folder
    "embedded": "questions",
    # Public words for a label-word head: none of them comes from the dataset.
    "label_phrases": {
        "abbreviation": ["what does this abbreviation stand for", "what is the acronym", "the full form of these letters"],
        "entity": ["what animal is it", "which thing is this", "what product, food, sport or colour"],
        "description": ["what does it mean", "why does it happen", "how does it work", "describe it"],
        "human": ["who is this person", "who did it", "which people or company"],
        "location": ["where is this place", "what country or city", "which mountain or state"],
        "number": ["how many are there", "when did it happen", "how much does it cost", "what year"],
    },
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{mask}: {text}",
        "words": {
            "abbreviation": "Expression",
            "entity": "Entity",
            "description": "Description",
            "human": "Human",
            "location": "Location",
            "number": "Number",
        },
    },
    "licence": "none stated upstream (Li and Roth, 2002)",
    "citation": "Li and Roth, COLING 2002",
}
