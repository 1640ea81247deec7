-- How many answers change when nothing does: two runs of one unedited model that differ in their batch size alone.
-- Follows from the runs; filled when the second of such a pair is ingested.
CREATE TABLE noise_floors (
    model_key        VARCHAR NOT NULL,
    run_id           VARCHAR NOT NULL,   -- the earlier ingested of the two
    other_run_id     VARCHAR NOT NULL,
    task             VARCHAR NOT NULL,
    metric           VARCHAR NOT NULL,
    filter           VARCHAR NOT NULL,
    documents        INTEGER NOT NULL,
    flips            INTEGER NOT NULL,
    batch_size       VARCHAR,
    other_batch_size VARCHAR
);

-- Append-only: the last row of a model's name and recipe is the run that later ones of that recipe are gated against.
-- Names beside ids, because a gate is there to notice when what bears the name has changed.
CREATE TABLE blessings (
    model_name   VARCHAR NOT NULL,
    model_key    VARCHAR NOT NULL,
    recipe_label VARCHAR NOT NULL,
    run_id       VARCHAR NOT NULL,
    blessed_at   TIMESTAMP NOT NULL,
    reason       VARCHAR NOT NULL
);

-- Append-only: every decision of a gate, whole.
CREATE TABLE gate_runs (
    gated_at       TIMESTAMP NOT NULL,
    verdict        VARCHAR NOT NULL,   -- PASS | WARN | FAIL | INCOMPARABLE | INCONCLUSIVE
    exit_code      INTEGER NOT NULL,
    model_name     VARCHAR NOT NULL,
    recipe_label   VARCHAR NOT NULL,
    candidate      VARCHAR NOT NULL,   -- run_id; the run itself need not be in the store
    candidate_path VARCHAR NOT NULL,
    policy         VARCHAR NOT NULL,   -- JSON, every default written out
    report         VARCHAR NOT NULL    -- JSON, as `lm_eval gate --json` prints it
);
