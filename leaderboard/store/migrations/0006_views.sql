-- Verdicts of whole boards, and views for SQL (leaderboard/README.md describes their columns). A reader needs none of this: `migrations.READABLE`.
-- A verdict follows from all runs of its model (the correction is over all of them), from the pinned baseline and from the code that judges; `verdict_states` says for which. Follows from the runs; nothing is lost with it.
CREATE TABLE verdicts (
    model_key      VARCHAR NOT NULL,
    run_id         VARCHAR NOT NULL,
    task           VARCHAR NOT NULL,
    metric         VARCHAR NOT NULL,   -- '' where the run failed
    filter         VARCHAR NOT NULL,
    verdict        VARCHAR NOT NULL,   -- better | worse | same | undecided | incomparable | failed | baseline
    n              INTEGER,
    baseline_run   VARCHAR,
    baseline_score DOUBLE,
    score          DOUBLE,
    delta          DOUBLE,
    low            DOUBLE,
    high           DOUBLE,
    improvement    DOUBLE,
    margin         DOUBLE,
    p              DOUBLE,
    q              DOUBLE,
    lost           INTEGER,
    gained         INTEGER,
    notes          VARCHAR NOT NULL    -- JSON list
);

CREATE TABLE verdict_states (
    model_key VARCHAR NOT NULL,
    state     VARCHAR NOT NULL,        -- of `model_states`, when the model's runs were judged
    code      VARCHAR NOT NULL,        -- digest of the source that judged
    judged_at TIMESTAMP NOT NULL
);

-- What a model's verdicts follow from, as one text: its runs and its pinned baseline.
CREATE VIEW model_states AS
SELECT v.model_key, md5(string_agg(r.run_id, ' ' ORDER BY r.run_id)
    || coalesce(' ' || (SELECT last(b.run_id ORDER BY b.pinned_at, b.rowid) FROM baselines b WHERE b.model_key = v.model_key), '')) AS state
FROM runs r JOIN variants v USING (variant_id)
GROUP BY v.model_key;

CREATE VIEW v_scores AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, s.task, s.metric, s.filter, s.score, s.stderr, s.reported,
    s.higher_is_better, s.is_primary, s.is_group, t.documents, t.num_fewshot, r.status, v.dtype, r.device, r.batch_size, r.started, r.path,
    r.run_id, v.model_key
FROM scores s JOIN runs r USING (run_id) JOIN variants v USING (variant_id) LEFT JOIN run_tasks t ON (t.run_id, t.task) = (s.run_id, s.task);

CREATE VIEW v_verdicts AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, d.task, d.metric, d.filter, d.verdict, d.n,
    d.baseline_score, d.score, d.delta, d.low, d.high, d.improvement, d.margin, d.p, d.q, d.lost, d.gained, d.notes,
    r.started, s.judged_at, r.path, r.run_id, d.baseline_run, v.model_key
FROM verdicts d JOIN verdict_states s USING (model_key) JOIN model_states m ON (m.model_key, m.state) = (s.model_key, s.state)
JOIN runs r ON r.run_id = d.run_id JOIN variants v USING (variant_id)
UNION ALL BY NAME
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, t.task, t.documents AS n, r.started, r.path, r.run_id, v.model_key
FROM run_tasks t JOIN runs r USING (run_id) JOIN variants v USING (variant_id) JOIN model_states m USING (model_key)
LEFT JOIN verdict_states s ON (m.model_key, m.state) = (s.model_key, s.state)
WHERE s.model_key IS NULL;

CREATE VIEW v_matrices AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, m.step, m.method, m.name, m.part, m.role, m.layer, m.shape,
    m.rank_before, m.rank_after, m.energy_kept, m.relative_error, m.parameters_before, m.parameters_after, m.bias_shift, m.fallback, m.stored,
    m.decomposition, m.excess_error, m.seconds, r.status, r.path, r.run_id, m.position, v.model_key
FROM receipts m JOIN runs r USING (run_id) JOIN variants v USING (variant_id);
