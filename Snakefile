include: "workflow/Snakefile"


# A default target inside an included file does not count, so the root needs its own.
rule reproduce:
    default_target: True
    input:
        rules.all.input,
    localrule: True
