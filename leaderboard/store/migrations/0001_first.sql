-- The first schema. A migration is never edited once released: write the next number instead.
-- No foreign keys (DuckDB checks them too early), primary keys on small tables only, no type that needs an extension:
-- JSON is kept as text, times are UTC in TIMESTAMP.

CREATE TABLE variants (
    variant_id      VARCHAR PRIMARY KEY,
    model_key       VARCHAR NOT NULL,   -- the base model: every variant of it shares this key and a board
    model_name      VARCHAR NOT NULL,
    pretrained      VARCHAR,
    revision        VARCHAR,
    identity        VARCHAR,
    model_type      VARCHAR,
    parameters      BIGINT,
    dtype           VARCHAR,
    recipe_id       VARCHAR,
    recipe_name     VARCHAR NOT NULL,
    recipe_label    VARCHAR NOT NULL,
    recipe_summary  VARCHAR,
    recipe_source   VARCHAR,
    recipe_resolved VARCHAR,
    control         VARCHAR,
    control_of      VARCHAR,
    digest_before   VARCHAR,
    digest_after    VARCHAR
);

CREATE TABLE runs (
    run_id               VARCHAR PRIMARY KEY,
    variant_id           VARCHAR NOT NULL,
    spec_id              VARCHAR,
    settings_id          VARCHAR,
    status               VARCHAR NOT NULL,   -- complete | failed
    failure_kind         VARCHAR,
    failure_reason       VARCHAR,
    failure_where        VARCHAR,
    origin               VARCHAR NOT NULL,   -- recipe (a receipt of ours) | plain (lm_eval's own files)
    path                 VARCHAR NOT NULL,
    files                VARCHAR,
    command              VARCHAR,
    started              TIMESTAMP,
    finished             TIMESTAMP,
    seconds              VARCHAR,
    backend              VARCHAR,
    device               VARCHAR,
    batch_size           VARCHAR,
    lm_eval_version      VARCHAR,
    transformers_version VARCHAR,
    torch_version        VARCHAR,
    versions             VARCHAR,
    settings             VARCHAR,
    seeds                VARCHAR,
    warnings             VARCHAR,
    totals               VARCHAR,
    parameters_before    BIGINT,
    parameters_after     BIGINT,
    ingested_at          TIMESTAMP NOT NULL
);

CREATE TABLE run_tasks (
    run_id                  VARCHAR NOT NULL,
    task                    VARCHAR NOT NULL,
    version                 VARCHAR,
    num_fewshot             BIGINT,
    documents               INTEGER,            -- NULL: no samples were logged
    documents_hash          VARCHAR,            -- of the sorted document keys, so order and world size do not matter
    chat_template_hash      VARCHAR,
    system_instruction_hash VARCHAR,
    generation_arguments    VARCHAR,
    output_type             VARCHAR,
    log_likelihoods         INTEGER,            -- how many there were
    log_likelihoods_hash    VARCHAR,            -- of all of them, to the bit
    calibration_overlap     INTEGER NOT NULL,   -- calibration documents that are also scored here
    overlap_example         VARCHAR,
    cluster_by              VARCHAR
);

CREATE TABLE scores (
    run_id           VARCHAR NOT NULL,
    task             VARCHAR NOT NULL,
    metric           VARCHAR NOT NULL,
    filter           VARCHAR NOT NULL,
    score            DOUBLE,                    -- NULL: not a finite number; `reported` then holds what it was
    reported         VARCHAR,
    stderr           DOUBLE,
    higher_is_better BOOLEAN,
    best_value       DOUBLE,
    margin           DOUBLE,
    is_primary       BOOLEAN NOT NULL,
    is_group         BOOLEAN NOT NULL
);

CREATE TABLE docs (
    doc_key     VARCHAR NOT NULL,
    task        VARCHAR NOT NULL,
    doc_hash    VARCHAR NOT NULL,
    prompt_hash VARCHAR NOT NULL,
    target_hash VARCHAR NOT NULL,
    document    VARCHAR,
    prompt      VARCHAR,
    target      VARCHAR
);

CREATE TABLE samples (
    run_id             VARCHAR NOT NULL,
    task               VARCHAR NOT NULL,
    filter             VARCHAR NOT NULL,
    doc_key            VARCHAR NOT NULL,
    occurrence         INTEGER NOT NULL,        -- 0 unless the task holds the same document twice
    doc_id             BIGINT,
    responses          VARCHAR,
    filtered_responses VARCHAR
);

CREATE TABLE sample_scores (
    run_id     VARCHAR NOT NULL,
    task       VARCHAR NOT NULL,
    metric     VARCHAR NOT NULL,
    filter     VARCHAR NOT NULL,
    doc_key    VARCHAR NOT NULL,
    occurrence INTEGER NOT NULL,
    cluster    VARCHAR,
    value      DOUBLE,                          -- NULL: not a finite number, or a value with parts
    weight     DOUBLE,                          -- words or bytes, where the value is a log-likelihood of a text
    parts      VARCHAR                          -- a (gold, prediction) pair and the like, as JSON
);

CREATE TABLE receipts (
    run_id            VARCHAR NOT NULL,
    position          INTEGER NOT NULL,
    step              BIGINT,
    method            VARCHAR,
    name              VARCHAR NOT NULL,
    part              VARCHAR,
    role              VARCHAR,
    layer             BIGINT,
    shape             VARCHAR,
    rank_before       BIGINT,
    rank_after        BIGINT,
    energy_kept       DOUBLE,
    relative_error    DOUBLE,
    digest_before     VARCHAR,
    digest_after      VARCHAR,
    seconds           DOUBLE,
    bias_shift        BOOLEAN,
    parameters_before BIGINT,
    parameters_after  BIGINT,
    fallback          VARCHAR
);

CREATE TABLE calibrations (
    run_id    VARCHAR NOT NULL,
    position  INTEGER NOT NULL,
    step      BIGINT,
    task      VARCHAR,
    split     VARCHAR,
    samples   BIGINT,
    seed      BIGINT,
    documents INTEGER NOT NULL
);

-- Append-only: the last row of a model is its pinned baseline, the earlier ones say what it was before.
CREATE TABLE baselines (
    model_key VARCHAR NOT NULL,
    run_id    VARCHAR NOT NULL,
    pinned_at TIMESTAMP NOT NULL,
    reason    VARCHAR NOT NULL
);

CREATE TABLE ingest_log (
    logged_at TIMESTAMP NOT NULL,
    path      VARCHAR NOT NULL,
    outcome   VARCHAR NOT NULL,   -- added | rejected
    run_id    VARCHAR,
    reason    VARCHAR
);
