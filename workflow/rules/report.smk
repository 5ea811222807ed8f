# What is made from all tables together. It is not removed before it is made anew: several Snakemakes, each with a GPU of its own, share it.
rule claims:
    input:
        tables=table_values,
    output:
        report(
            update("results/claims.json"),
            caption="../report/claims.rst",
            category="all tables",
            labels=labels("all", "claims"),
        ),
    log:
        "logs/claims.log",
    localrule: True
    conda:
        environment_of
    params:
        version=__version__,
    shell:
        f"{DPBENCH} claims --tables {{input.tables:q}} --out {{output:q}} > {{log:q}} 2>&1"


rule long:
    input:
        records=all_records(),
        recorded=RECORDED,
    output:
        csv=report(
            update("results/long.csv"),
            caption="../report/long.rst",
            category="all tables",
            labels=labels("all", "every record and metric"),
        ),
        parquet=update("results/long.parquet"),
    log:
        "logs/long.log",
    localrule: True
    conda:
        environment_of
    params:
        version=__version__,
    shell:
        f"{DPBENCH} long --out {{output.csv:q}} > {{log:q}} 2>&1"


rule report:
    input:
        tables=table_values,
        plots=all_plots(),
        claims="results/claims.json",
        deviations=all_deviations,
    output:
        report(
            update("reports/index.html"),
            caption="../report/page.rst",
            category="all tables",
            labels=labels("all", "the whole report"),
        ),
    log:
        "logs/report.log",
    localrule: True
    conda:
        environment_of
    params:
        version=__version__,
    shell:
        f"{DPBENCH} report --tables {{input.tables:q}} --plots {{input.plots:q}} --claims {{input.claims:q}}"
        " --out {output:q} > {log:q} 2>&1"
