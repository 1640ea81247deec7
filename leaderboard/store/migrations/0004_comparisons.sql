-- What judging found, remembered: `remembered` says of what, and when a row no longer counts. Follows from the runs; nothing is lost with it.
CREATE TABLE comparisons (
    run_id           VARCHAR NOT NULL,
    baseline_run     VARCHAR NOT NULL,
    task             VARCHAR NOT NULL,
    metric           VARCHAR NOT NULL,
    filter           VARCHAR NOT NULL,
    code             VARCHAR NOT NULL,   -- digest of the source that judged
    baseline_score   DOUBLE,
    documents        INTEGER,            -- NULL: the two may not be compared, and `obstacles` says why
    delta            DOUBLE,
    low              DOUBLE,
    high             DOUBLE,
    improvement      DOUBLE,
    p_value          DOUBLE,
    p_same           DOUBLE,
    lost             INTEGER,
    gained           INTEGER,
    flip_rate        DOUBLE,
    documents_needed BIGINT,
    margin           DOUBLE,
    detectable       DOUBLE,
    obstacles        VARCHAR NOT NULL,   -- JSON lists
    notes            VARCHAR NOT NULL
);
