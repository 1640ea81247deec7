-- Each recipe against each control of its own, on the same documents. Follows from the runs, as `verdicts` does, and is valid when that is.
ALTER TABLE verdicts ADD COLUMN label VARCHAR;              -- the recipe, with what tells the run from others of its model
ALTER TABLE verdicts ADD COLUMN documents_needed BIGINT;    -- of an undecided row, to get the verdict `needed_for` in four of five cases
ALTER TABLE verdicts ADD COLUMN needed_for VARCHAR;         -- within | within as seen | difference
ALTER TABLE verdicts ADD COLUMN clipped_at DOUBLE;          -- low and high are of the mean change in which no document counts for more; NULL: plain

CREATE TABLE control_verdicts AS SELECT ''::VARCHAR AS control, * FROM verdicts WHERE false;

ALTER TABLE verdicts ADD COLUMN beats_controls BOOLEAN;     -- better than every control of its own; NULL: none was run

CREATE VIEW v_control_verdicts AS
SELECT v.model_name AS model, v.recipe_label AS recipe, d.control, d.task, d.metric, d.filter, d.verdict, d.n, d.baseline_score AS control_score,
    d.score, d.delta, d.low, d.high, d.improvement, d.margin, d.p, d.q, d.lost, d.gained, d.unpaired, d.clipped_at, d.notes, r.started, s.judged_at, r.path, r.run_id,
    d.baseline_run AS control_run, v.recipe_id, v.model_key
FROM control_verdicts d JOIN verdict_states s USING (model_key) JOIN model_states m ON (m.model_key, m.state) = (s.model_key, s.state)
JOIN runs r ON r.run_id = d.run_id JOIN variants v USING (variant_id);

CREATE OR REPLACE VIEW v_scores AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, s.task, s.metric, s.filter, s.score, s.stderr, s.reported,
    s.higher_is_better, s.is_primary, s.is_group, coalesce(t.documents, t.sample_count) AS documents, t.documents IS NOT NULL AS has_samples, t.subset,
    t.num_fewshot, t.identity AS task_identity, r.status, r.edited, v.dtype, r.device, r.batch_size, r.started, r.path, r.run_id, v.recipe_id, v.model_key
FROM scores s JOIN runs r USING (run_id) JOIN variants v USING (variant_id) LEFT JOIN run_tasks t ON (t.run_id, t.task) = (s.run_id, s.task);

CREATE OR REPLACE VIEW v_verdicts AS
SELECT v.model_name AS model, v.recipe_label AS recipe, d.label, v.control, v.control_of, d.task, d.metric, d.filter, d.verdict, d.beats_controls, d.n,
    d.baseline_score, d.score, d.delta, d.low, d.high, d.unpaired, d.clipped_at, d.improvement, d.margin, d.p, d.q, d.lost, d.gained, d.documents_needed, d.needed_for, d.notes,
    r.started, s.judged_at, r.path, r.run_id, d.baseline_run, v.recipe_id, v.model_key
FROM verdicts d JOIN verdict_states s USING (model_key) JOIN model_states m ON (m.model_key, m.state) = (s.model_key, s.state)
JOIN runs r ON r.run_id = d.run_id JOIN variants v USING (variant_id)
UNION ALL BY NAME
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, t.task, t.documents AS n, r.started, r.path, r.run_id, v.recipe_id, v.model_key
FROM run_tasks t JOIN runs r USING (run_id) JOIN variants v USING (variant_id) JOIN model_states m USING (model_key)
LEFT JOIN verdict_states s ON (m.model_key, m.state) = (s.model_key, s.state)
WHERE s.model_key IS NULL;
