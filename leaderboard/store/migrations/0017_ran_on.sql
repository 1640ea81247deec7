-- Of runs: where they were made, from their receipts; NULL where those do not say. Runs of other GPUs or engines are compared only where the noise
-- floor of both places was measured (`compare.hardware`).
ALTER TABLE runs ADD COLUMN host VARCHAR;
ALTER TABLE runs ADD COLUMN gpu VARCHAR;              -- names of the GPUs, each once; NULL on a CPU as well
ALTER TABLE runs ADD COLUMN gpu_count INTEGER;        -- of those used; 0 on a CPU
ALTER TABLE runs ADD COLUMN driver VARCHAR;
ALTER TABLE runs ADD COLUMN ranks INTEGER;            -- processes that shared the work
ALTER TABLE runs ADD COLUMN engine VARCHAR;           -- hf | vllm | sglang
ALTER TABLE runs ADD COLUMN engine_version VARCHAR;
ALTER TABLE runs ADD COLUMN sweep VARCHAR;
ALTER TABLE runs ADD COLUMN sweep_cell VARCHAR;

CREATE OR REPLACE VIEW v_scores AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, s.task, s.metric, s.filter, s.score, s.stderr, s.reported,
    s.higher_is_better, s.is_primary, s.is_group, coalesce(t.documents, t.sample_count) AS documents, t.documents IS NOT NULL AS has_samples, t.subset,
    t.num_fewshot, t.identity AS task_identity, r.status, r.edited, v.dtype, r.device, r.batch_size, r.started, r.path, r.run_id, v.recipe_id, v.model_key,
    r.gpu, r.gpu_count, r.driver, r.host, r.ranks, r.engine, r.engine_version, r.sweep, r.sweep_cell
FROM scores s JOIN runs r USING (run_id) JOIN variants v USING (variant_id) LEFT JOIN run_tasks t ON (t.run_id, t.task) = (s.run_id, s.task);
