-- Each recipe against each control of its own, on the same documents. Follows from the runs, as `verdicts` does, and is valid when that is.
CREATE TABLE control_verdicts AS SELECT ''::VARCHAR AS control, * FROM verdicts WHERE false;

ALTER TABLE verdicts ADD COLUMN beats_controls BOOLEAN;   -- better than every control of its own; NULL: none was run

CREATE VIEW v_control_verdicts AS
SELECT v.model_name AS model, v.recipe_label AS recipe, d.control, d.task, d.metric, d.filter, d.verdict, d.n, d.baseline_score AS control_score,
    d.score, d.delta, d.low, d.high, d.improvement, d.margin, d.p, d.q, d.lost, d.gained, d.notes, r.started, s.judged_at, r.path, r.run_id,
    d.baseline_run AS control_run, v.recipe_id, v.model_key
FROM control_verdicts d JOIN verdict_states s USING (model_key) JOIN model_states m ON (m.model_key, m.state) = (s.model_key, s.state)
JOIN runs r ON r.run_id = d.run_id JOIN variants v USING (variant_id);
