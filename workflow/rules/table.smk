# A table beside its published and recorded values, and its plots.
rule table:
    input:
        records=records_of_table,
        recorded=RECORDED,
        definition=definition_of_table,
    output:
        csv=report(
            "results/tables/{paper}/{table}.csv",
            caption="../report/table.rst",
            category="{paper}",
            subcategory="{table}",
            labels=labels("{table}", "values"),
        ),
        md="results/tables/{paper}/{table}.md",
        tex="results/tables/{paper}/{table}.tex",
        json="results/tables/{paper}/{table}.json",
        html=report(
            "results/tables/{paper}/{table}.html",
            caption="../report/table.rst",
            category="{paper}",
            subcategory="{table}",
            labels=labels("{table}", "table"),
        ),
    log:
        "logs/tables/{paper}/{table}.log",
    localrule: True
    conda:
        "../envs/dpbench.yaml"
    params:
        # a change of any of these, a switch of tier above all, makes the table anew
        tier=STUDY.config.tier,
        seeds=seeds_argument(),
        sources=sources_of_table,
        runs=runs_of_table,
        version=__version__,
        folder=subpath(output.csv, parent=True),
    shell:
        f"{DPBENCH} table {{wildcards.paper}}/{{wildcards.table}} --tier {{params.tier}} {{params.seeds}}"
        " --sources {params.sources:q} --keep-going --out {params.folder:q} > {log:q} 2>&1"


rule plot:
    input:
        "results/tables/{paper}/{table}.json",
    output:
        report(
            "results/plots/{paper}/{table}/{plot}.svg",
            caption="../report/plot.rst",
            category="{paper}",
            subcategory="{table}",
            labels=labels("{table}", "{plot}"),
        ),
    log:
        "logs/plots/{paper}/{table}/{plot}.log",
    localrule: True
    conda:
        "../envs/dpbench.yaml"
    shell:
        f"{DPBENCH} plot {{wildcards.paper}}/{{wildcards.table}} {{wildcards.plot}}"
        " --table {input:q} --out {output:q} > {log:q} 2>&1"
