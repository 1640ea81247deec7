-- Of comparisons and verdicts: the share of right answers that guessing among a document's choices gets, or always taking the same one where that finds more;
-- and whether the run's right answers are shown to be more; NULL for metrics that do not count right answers among choices.
ALTER TABLE comparisons ADD COLUMN chance DOUBLE;
ALTER TABLE comparisons ADD COLUMN beats_chance BOOLEAN;
ALTER TABLE verdicts ADD COLUMN chance DOUBLE;
ALTER TABLE verdicts ADD COLUMN beats_chance BOOLEAN;

CREATE OR REPLACE VIEW v_verdicts AS
SELECT v.model_name AS model, v.recipe_label AS recipe, d.label, v.control, v.control_of, d.task, d.metric, d.filter, d.is_primary, d.verdict, d.beats_controls, d.n,
    d.baseline_score, d.score, d.delta, d.low, d.high, d.unpaired, d.clipped_at, d.improvement, d.margin, d.p, d.q, d.lost, d.gained, d.chance, d.beats_chance, d.documents_needed, d.needed_for, d.notes,
    r.started, s.judged_at, r.path, r.run_id, d.baseline_run, v.recipe_id, v.model_key
FROM verdicts d JOIN verdict_states s USING (model_key) JOIN model_states m ON (m.model_key, m.state) = (s.model_key, s.state)
JOIN runs r ON r.run_id = d.run_id JOIN variants v USING (variant_id)
UNION ALL BY NAME
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, t.task, true AS is_primary, t.documents AS n, r.started, r.path, r.run_id, v.recipe_id, v.model_key
FROM run_tasks t JOIN runs r USING (run_id) JOIN variants v USING (variant_id) JOIN model_states m USING (model_key)
LEFT JOIN verdict_states s ON (m.model_key, m.state) = (s.model_key, s.state)
WHERE s.model_key IS NULL;
