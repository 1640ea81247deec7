"""The gate: may this run replace the last one? PASS, WARN, FAIL or UNDECIDED, with an exit code and reasons.

    policy  +  candidate, baselines  ->  rows (a task or a suite, against one baseline)  ->  decision  ->  table, JSON,
    Markdown, JUnit

Notable choices: a gate reads run directories afresh, through a store in memory, so that it needs no database and no
torch. A database only names runs (`base`, `blessed`), gives noise floors and remembers decisions. A candidate is
measured against the unedited model *and* the last blessed run of its recipe, never only the run before, or small losses
accumulate.
"""
